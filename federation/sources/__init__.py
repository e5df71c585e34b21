"""Where the local part of the picture comes from: today folders of Kubernetes YAML, watched.

    manifests, tree               watches the folders; reads the files
    documents, scalars            YAML as plain values with line numbers P
    objects                       each document is an object, or a finding P
    services, pods, fields        what is read of each kind, and what is wrong with it P
    annotations                   what the annotations of the mesh say: whom an export is for, what callers wish P
    conversion                    plain values as types, for lab files too P
    assembly                      all files together: which of two equals counts, what a broken one leaves in force P

A broken object becomes a finding with file, line, field and hint; it never disturbs the others. The pure parts are
what `isthmus check` runs.
"""
