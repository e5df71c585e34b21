"""The bundled example: a lab file, its Kubernetes manifests and a program that says who it is."""
