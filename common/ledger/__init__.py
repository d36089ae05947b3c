"""A site's own record of what every patient has given away: append-only, chained, signed, recomputable.

`store` writes it, `verify` and `recompute` judge it, `export` hands it to an auditor; each file is one idea:

    entries     every kind of entry and its one encoding      checkpoint  the signed statement after each entry
    merkle      the tree and its proofs                       files       the few operations on files it needs
    state       what the entries add up to; what may follow   reader      one line after another, or why not
    terms       what a site agrees to                         rule        does one more study fit under the cap
    witness     what others keep of it                        outbox      bytes that may be sent again
    show        plain tables for people

What a site's ledger cannot do alone: notice that all of it was replaced by an older copy, or rewritten, by whoever
holds its key. Checkpoints that others hold can (`witness`, `verify --seen`).
"""
