"""Who somebody is, and how they prove it. The lowest room of the house: it imports none of the others.

One mesh has one trust domain name and one root, kept offline in a directory of the operator (`authority.Root`). Every
member cluster makes the key of its own intermediate, asks for a certificate (`joining`), and from then on issues the
short-lived certificates of its workloads by itself (`issuance`), to whoever shows a token it knows (`attestation`).

    root (offline, pathlen 1)
     └─ intermediate of east: speaks for spiffe://east.<domain>/... and *.east.<domain> alone   (X.509 name constraints)
         └─ leaf: spiffe://east.<domain>/ns/shop/sa/cart, hours to live                        (SPIFFE X509-SVID)

`spiffe` makes and parses the names, `certificates` the certificates (pure: time and lifetimes are arguments), `custody`
keeps a CA key. Whatever is refused here is a `refusals.Refusal`: it says what is wrong and what to do next.
"""
