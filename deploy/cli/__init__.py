"""The command `isthmus`: what people type, and how they are answered.

main             the table of commands, each imported when it is called; errors become `error:` and `hint:`
reach, targets   which control plane is meant
admin_client     how it is asked
output           tables, JSON and YAML
all others       the commands
"""
