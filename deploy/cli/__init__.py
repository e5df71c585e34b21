"""The command `isthmus`: what people type, and how they are answered.

main             the table of commands, each imported when it is called; errors become `error:` and `hint:`
reach, targets   which control plane is meant
output           tables, JSON and YAML; `lab_display` has those of the lab
all others       the commands
"""
