"""The consortium's service: what is said between sites and coordinator beside the rounds of a study.

consortium.proto is the one schema; statements.py says what is signed; channel.py calls. The coordinator's side is
`server.consortium`, a hospital's `client.consortium`.
"""
