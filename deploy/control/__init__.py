"""The control plane of one cluster as one process: `isthmus control`.

    options      what it is told when it starts         process    the assembly: which part runs when
    backend      what its admin API answers             trust_backend   the same about trust
    reports P    what it says about itself              trust_warnings P   what will break of its trust, and when
    service_reports P   the same about services
    problems P   what does not work now, and since when
    membership   how the cluster joins the mesh
    keeper       whom it believes, and which authority signs, kept up to date    trust_files   its data directory
    renewal P    when it gets another authority, and lets the old one go
    identity     its own certificate, and those of its proxies
    admissions   who may be told something              tokens     the join tokens that are asked for at this door
    proxies      what each proxy is told (the compilers)
    entrance     where proxies and peers come in        handover P    when they are left to other replicas
    drain_backend    which members calls are to leave    departures   who leaves the mesh
    audit        who got or was refused an identity, and what was done to trust, in a file

Before the cluster has joined a mesh only the admin API is open. Proxies and peers are served once the picture is whole.
"""
