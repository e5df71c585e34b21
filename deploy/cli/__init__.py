"""The command `isthmus`: what people type, and how they are answered.

main             the table of commands, each imported when it is called; errors become `error:` and `hint:`
reach, targets   which control plane is meant            spans     times as options take them
output           tables, JSON and YAML                   progress  what a command waits for, while it does
roots            --root and the passphrase of its keys
survey           what all control planes that are reached say of trust, put together; and how all of them are told
copies           whether a root directory is the newest copy of itself P

A command is a verb; what it drives or shows stands in a module beside it:

    rotate    rotation (drives it, stage by stage) - rotation_stages (what each waits for, in words P)
    revoke    revocation (drives it, and says how far each member is)
    drain     drain_driver (drives it) - drain_run (whom one run reaches, what it told and counted) - drain_mesh (asks
              and tells all members) - draining (ramp, counters, when to give up, when nothing is carried P)
              - drain_outcome (how it ended) - drain_display
    trust     trust_status (sums the mesh up P) - trust_display (its tables, also of the two above)
    lab       lab_display
    check, clusters, control, leave, members, services, status and token are commands alone
"""
