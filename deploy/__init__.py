"""How the mesh runs: the rooms below decide, this one starts processes and talks to people. Nobody imports it.

cli/                     the command `isthmus`, one module a group of commands
control/                 the control plane of one cluster as a process
lab/                     a whole mesh on one machine
examples/                what `isthmus lab up` starts when no lab file is given
admin_client, contexts   how a control plane is asked, and where it is
failures, logs           how all of them fail and log
"""
