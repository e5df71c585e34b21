"""The control plane of one cluster as one process: `isthmus control`.

    options   what it is told when it starts
    identity  its own certificate, and those of its proxies
    proxies   who may be told something (join tokens), and what (the compilers)
    reports   what it says about itself
    process   the assembly: which part runs when

Before the cluster has joined a mesh only the admin API is open. Proxies and peers are served once the picture is whole.
"""
