"""Who somebody is, and how they prove it. The lowest room of the house: it imports none of the others.

One mesh has one trust domain name and one root, kept offline in a directory of the operator (`root`). Every member
cluster makes the key of its own intermediate, asks for a certificate (`joining`, `enrolment`), and from then on issues
the short-lived certificates of its workloads by itself (`issuance`), to whoever shows a token it knows (`attestation`).
Whom the members believe, the root says in signed documents (`bundle`); by them all of its keys are rotated.

    root (offline, pathlen 1)
     └─ intermediate of east: speaks for spiffe://east.<domain>/... and *.east.<domain> alone   (X.509 name constraints)
         └─ leaf: spiffe://east.<domain>/ns/shop/sa/cart, hours to live                        (SPIFFE X509-SVID)

    names        spiffe P - certificates P (made and read) - verification P (a chain, checked) - refusals P
    the root     root - root_directory (what is on its disk) - ledger P (who was granted what) - bundle P (what it says)
    a cluster    joining P (request and grant) - enrolment (its authorities, on disk) - issuance
    rotation     rotation P (when it may go on) - statements P (what members say of their proxies)
    keys         custody (in files) - pkcs11, pkcs11_uri P, token_session (in a token) - secret_custody (in Kubernetes)
    proxies      attestation P (the door) - join_tokens P - token_review P (tokens of Kubernetes)
    files        written whole or not at all                    audit P    who got, or was refused, an identity

What a thief of each key could do, what holds then and what to do about it stands in THREATS.md beside this file.
"""
