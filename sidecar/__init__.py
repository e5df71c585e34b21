"""What a sidecar is told: pure functions from the view of the mesh to Envoy resources.

`outbound` is where the workload's calls go (`upstreams` are the clusters, `routes` the HTTP routes and retries,
`tunnels` the way to peers on other networks); `inbound` is who may come in, and where the app is. Sidecars of one
audience share all of the outbound side but its listeners; an endpoint that changes changes one load assignment.
"""
