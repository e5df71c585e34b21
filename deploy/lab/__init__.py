"""A whole mesh on one machine: real etcds, control planes, Envoys and programs, without root or containers.

    plan        what the lab file asks for            P
    plan_file, plan_checks   its fields as written, and what can be wrong with them   P
    addresses   who listens where in 127.0.0.0/8      P
    targets     what processes are called             P
    commands    how each kind of process is started   P
    processes   start, kill, pause; guard ends them all when the lab itself dies
    links       relays: slow, silent, refusing
    wiring      all links of a lab: between clusters, and from control planes to their etcd
    kubelet     readiness of programs, written as Pods
    bringup     the order in which a lab comes to life
    supervisor  a running lab; api and client are the two ends of its Unix socket
    startup     in this process or in one of its own
    reports     what a running lab says of itself     P
    state       where a lab keeps its files
    load, demo  requests on schedule, and the story that they tell

A process of the lab owns all others. Nobody restarts what was killed: `isthmus lab start` does. The lab file and the
commands are explained in README.md beside this file.
"""
