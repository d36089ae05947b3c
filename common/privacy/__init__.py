"""What protects a patient, in parts that can be audited alone: clip, source, noise, sampling, accountant, prv.

They do not import each other. `plan` is the one place where they meet, and it states the joint guarantee.
"""
