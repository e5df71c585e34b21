"""What clusters tell each other, whom they believe, and how it is kept: the federation stream and its records in etcd.

    ours to them    own_exports (what we export, as offers) - offer (serves the stream) - publisher (keeps our records)
    theirs to us    peers (one each) - dialing (one connection) - listening (one stream) - intake (what is believed of
                    it) - introductions (who is new) - diagnosis (why a handshake failed) - redials (when, and how
                    many at once) - rejections (what of it is refused)
    in etcd         records (how they are written) - replica (our copy of them becomes part of the picture)
                    decisions (what an admin ordered, numbered)
    of trust        trust_keeper (the shape of who keeps our own trust) - trust_records (on the stream and in etcd)
                    statements (the sum of what the own proxies acknowledged) P
    decides         exports (what is offered, and what is believed) P - checks (what the parts of a record may say) P
                    freshness (live, stale or gone) P - membership (is there such a member, is it revoked) P
                    allowance (how much a peer may have kept) P
                    visibility (which members get to know an export) P - hearsay (who tells whom of a member) P
                    farewells (who leaves, and comes back)
    by the clock    silences (how long each silent member has been silent, in every replica)
                    beats (ours, on each stream)
    wakes           news (something happened that you have not seen)

Publisher and peers are the leader's; offer, introductions and replica run in every replica. A cluster speaks for itself
alone, and silence deletes nothing.
"""
