"""Delivery: Envoy's delta xDS protocol as a pure machine, and the gRPC around it. Inside here a cluster is Envoy's.

resources, wire                              named bytes with a version P; their messages P
protocol, channel                            what is due on one stream, in Envoy's order; one type of it P
client                                       the other end of a stream, for our own federation P
server, session, ads                         the gRPC service; what is known of one proxy; ADS for proxies
loads                                        what the proxies carry, as they report it
builders, listeners, tls, secrets, bootstrap the words that all compilers of Envoy configuration share P
"""
