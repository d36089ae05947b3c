"""The coordinator's side of the consortium's service.

gate.py         who may call what, and how much: every request passes here before it is parsed
members.py      enrolment and certificates       studies.py  offers, approvals, models, status
witnessing.py   checkpoints and cosignatures     invitations.py, offers.py  what the coordinator hands out
service.py      the server itself                witnessed.py  cosigned checkpoints as files, for auditors
"""
