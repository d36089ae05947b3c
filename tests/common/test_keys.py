"""Agreement, derivation and sealing against published answers, and what they answer to bad bytes."""

import os

import pytest

from sottovoce.common.keys import AgreementKey, derived_key, opened, sealed


def test_agreement_is_that_of_rfc_7748() -> None:
    key = AgreementKey(bytes.fromhex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4"))
    public = bytes.fromhex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c")
    shared = key.shared(public)
    assert shared is not None
    assert shared.hex() == "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"


def test_two_holders_agree_and_a_third_does_not() -> None:
    one, other, third = (AgreementKey(os.urandom(32)) for _ in range(3))
    assert one.shared(other.public) == other.shared(one.public) != third.shared(one.public)


@pytest.mark.parametrize("public", [b"", bytes(31), bytes(33), bytes(32), (1).to_bytes(32, "little")])
def test_what_is_no_key_or_of_low_order_is_agreed_with_by_nobody(public: bytes) -> None:
    assert AgreementKey(os.urandom(32)).shared(public) is None


def test_an_agreement_key_prints_only_its_public_half() -> None:
    secret = bytes(range(32))
    assert secret.hex()[:16] not in repr(AgreementKey(secret))


def test_derivation_is_that_of_rfc_5869() -> None:
    key = derived_key(b"\x0b" * 22, salt=bytes(range(13)), info=bytes(range(0xF0, 0xFA)))
    assert key.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"


def test_sealing_is_aes_256_gcm_under_a_zero_nonce() -> None:
    assert sealed(bytes(32), b"", b"").hex() == "530f8afbc74536b9a963b4f1c4cb738b"
    assert sealed(bytes(32), bytes(16), b"").hex()[:32] == "cea7403d4d606b6e074ec5d3baf39d18"


def test_what_was_sealed_opens_under_its_key_and_context_alone() -> None:
    cipher = sealed(bytes(32), b"text", b"context")
    assert opened(bytes(32), cipher, b"context") == b"text"
    for key, data, context in (
        (b"k" * 32, cipher, b"context"),
        (bytes(32), cipher[:-1], b"context"),
        (bytes(32), b"", b"context"),
        (bytes(32), cipher, b"other"),
    ):
        assert opened(key, data, context) is None
