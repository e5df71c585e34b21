"""Who somebody is, and how they prove it. The lowest room of the house: it imports none of the others.

One mesh has one trust domain name and one root, kept offline in a directory of the operator (`root`). Every member
cluster makes the key of its own intermediate, asks for a certificate (`joining`, `enrolment`), and from then on issues
the short-lived certificates of its workloads by itself (`issuance`), to whoever shows a token it knows (`attestation`).
Whom the members believe, the root says in signed documents (`bundle`); by them all of its keys are rotated.

    root (offline, pathlen 1)
     └─ intermediate of east: speaks for spiffe://east.<domain>/... and *.east.<domain> alone   (X.509 name constraints)
         └─ leaf: spiffe://east.<domain>/ns/shop/sa/cart, hours to live                        (SPIFFE X509-SVID)

`spiffe` makes and parses the names, `certificates` the certificates (pure: time and lifetimes are arguments), `custody`
keeps a CA key. Whatever is refused here is a `refusals.Refusal`: it says what is wrong and what to do next.
What a thief of each key could do, what holds then and what to do about it stands in THREATS.md beside this file.
"""
