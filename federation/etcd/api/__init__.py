"""The part of etcd's v3 gRPC API that we speak: a subset of its .proto files and the code that `make protos` makes of it.

Field numbers, package names and service paths are etcd's (api/mvccpb/kv.proto and api/etcdserverpb/rpc.proto of
https://github.com/etcd-io/etcd, Apache-2.0), so the bytes are what every etcd v3 server understands; what is left out
here is skipped as unknown fields. The files' own paths keep them apart from anybody's `rpc.proto` in protobuf's pool.
"""
