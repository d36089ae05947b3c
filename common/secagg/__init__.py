"""Exact sums of integer vectors that nobody sees singly: Bonawitz et al. (CCS 2017), malicious-server variant.

Full graph, 3 to 50 sites, five phases; `docs/protocol.md` states every byte, and `tests/fakes/secagg_reference.py`
is a second implementation of that page.

    phase      coordinator sends              a site answers (`participant.py`)
    advert     opening: the session           two X25519 keys and a commitment to its self-mask, signed
    deal       every advert                   Shamir shares of mask key and self-mask, sealed for each peer
    mask       the shares sealed for it       its vector + self-mask + pairwise masks
    consent    who is in the sum              its signature under that set
    reveal     the others' signatures         of each peer in the sum a self-mask share, of each lost one a
                                              mask key share, never both

Flat parts: `session` (what all must agree on), `wire` (bytes), `shamir`, `masks` (the ring), `complaint` and
`journal` know of no machine; `participant` and `coordinator` are the two machines, and `state` is what a site holds
between two phases, as bytes. No sockets, no clocks, no disks: bytes in, and a verified object or `SecureSumError`
out.

Secure sums hide single vectors from the coordinator. They are never privacy for a patient: the sum itself tells,
and so do two sums of almost the same sites. That is for noise, which is not made here.
"""
