"""What a gateway is told: pure functions from the picture to Envoy resources.

`eastwest` is the one port of a cluster that other clusters reach: tunnels to exported pods, and the federation stream.
"""
