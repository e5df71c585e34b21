"""One sound manifest of each kind, for tests that change a word of it."""

SERVICE = """\
apiVersion: v1
kind: Service
metadata:
  name: cart
  namespace: shop
  labels: {app.kubernetes.io/name: cart}
spec:
  type: ClusterIP
  selector:
    app: cart
  ports:
    - name: http
      port: 80
      targetPort: web
    - name: db
      port: 5432
"""
EXPORT = """\
apiVersion: multicluster.x-k8s.io/v1beta1
kind: ServiceExport
metadata:
  name: cart
  namespace: shop
"""
POD = """\
apiVersion: v1
kind: Pod
metadata:
  name: cart-1
  namespace: shop
  labels:
    app: cart
    topology.kubernetes.io/region: eu
    topology.kubernetes.io/zone: a
    isthmus.dev/cloud: one
  annotations:
    isthmus.dev/tcp-uses: redis.shop.svc.clusterset.local:6379@6380, db:5432@5432
spec:
  serviceAccountName: cart
  containers:
    - name: app
      ports:
        - name: web
          containerPort: 8080
        - containerPort: 9090
    - name: other
      ports:
        - {name: dns, containerPort: 53, protocol: UDP}
        - {name: admin, containerPort: 9000}
status:
  phase: Running
  podIP: 127.20.1.5
  conditions:
    - type: Initialized
      status: "True"
    - type: Ready
      status: "True"
"""
