"""What the mesh is: one picture, filled by sources and peers, and delivered to every proxy.

    sources/   Kubernetes objects become changes of the picture
    etcd/      the cluster's own etcd: what it keeps, who may write
    peering/   what clusters tell each other, and keep in etcd
    xds/       Envoy's protocol: what is sent to a proxy, when, in which order

    model      the nouns P              names      every name that crosses a wire P
    snapshot   the picture P            store      the one place where it is swapped
    view       what one audience sees of it P: from offers (who offers what, as far as it is believed), conflicts (ports
               that members define differently), drains (what is left of a member's calls) and placement (in which order
               and proportion endpoints are called)
    staleness  which silences of members matter to somebody P    spans    how spans of time are written P
    revoked    who is left when the revoked are taken away P
    severing   whose connections are made to end P
    acknowledgements   what each proxy acknowledged of its trust, in etcd    proxy_trust   of one of them P
    loads      sums of what proxies carry P
    reports    what is said about all this P    telemetry, admin    and how it is asked

Nothing here knows what kinds of proxy there are: `sidecar` and `gateway` compile, this room delivers.
"""
