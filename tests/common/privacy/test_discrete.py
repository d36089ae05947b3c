"""Discrete Gaussians have the law they promise, and every decision is the one that fractions would make."""

import ast
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chisquare, kstest, norm

from sottovoce.common.errors import PrivacyError
from sottovoce.common.privacy import discrete
from sottovoce.common.privacy.discrete import ONE, discrete_gaussians
from sottovoce.common.privacy.source import SecretSource
from tests.fakes.exact_distributed import discrete_gaussian
from tests.fakes.plain_discrete import Recorded, candidate

N = 40_000
FAR = discrete.FAST_REACH
SMALL = [Fraction(1, 2), Fraction(3, 2), Fraction(20), Fraction(100_003, 1000)]
LARGE = [Fraction(2**40 + 1, 3), Fraction(2**54)]
BOUNDARIES = [0, ONE - 1, *(ONE // k + step for k in (2, 3, 4) for step in (-1, 0, 1))]


def fit(draws: np.ndarray, variance: Fraction) -> float:
    """The p-value of draws against the law itself: by counts where it is narrow, by its limit where it is wide."""
    if variance > 1000:
        return float(kstest(draws / float(variance) ** 0.5, norm.cdf).pvalue)
    reach = int(12 * float(variance) ** 0.5) + 2
    expected = len(draws) * discrete_gaussian(float(variance), reach)
    counts = np.bincount(np.clip(draws, -reach, reach) + reach, minlength=2 * reach + 1)
    often = expected >= 10
    kept = [*counts[often], counts[~often].sum()]
    return float(chisquare(kept, [*expected[often], expected[~often].sum()]).pvalue)


@pytest.mark.parametrize("variance", [*SMALL, *LARGE])
def test_draws_have_the_law_of_their_variance(variance: Fraction) -> None:
    # Draws cannot be seeded: so seldom is a right law refused. Rare sizes are a few counts and stray more than the law
    # of large numbers says.
    assert fit(discrete_gaussians(variance, N, SecretSource()), variance) > 1e-12


@pytest.mark.parametrize("variance", [*SMALL[1:], *LARGE])
@pytest.mark.parametrize("scale", [Fraction(2, 3), Fraction(3, 2)])
def test_draws_of_another_scale_are_noticed(variance: Fraction, scale: Fraction) -> None:
    assert fit(discrete_gaussians(variance * scale**2, N, SecretSource()), variance) < 1e-20


def decisions(variance: Fraction, words: list[int]) -> tuple[list[int | None], list[int | None]]:
    """Ours with one lane and the plain ones, on the same words, until these run out; both must take equally many."""
    ours, plain = Recorded(words), Recorded(words)
    law, mine, theirs = discrete._law(variance), list[int | None](), list[int | None]()
    while len(words) - max(ours.n_taken, plain.n_taken) > 200:
        values, stays = discrete._candidates(law, 1, ours)
        mine.append(int(values[0]) if stays[0] else None)
        theirs.append(candidate(variance, law.log_scale, plain.one))
        assert ours.n_taken == plain.n_taken, "a decision took other words than the plain algorithm's"
    return mine, theirs


@pytest.mark.parametrize("variance", [Fraction(1, 2), Fraction(7, 3), *LARGE])
def test_one_lane_decides_as_the_plain_algorithm_does(variance: Fraction) -> None:
    words = [int(word) for word in SecretSource().words(1200)]
    mine, theirs = decisions(variance, words)
    assert mine == theirs
    assert any(value is None for value in mine)
    assert any(value is not None for value in mine)


@pytest.mark.parametrize("variance", [Fraction(1, 2), Fraction(2), Fraction(7, 3), Fraction(10**9)])
def test_words_that_fall_on_a_boundary_are_decided_as_fractions_decide(variance: Fraction) -> None:
    rng = np.random.default_rng(0)
    honest = [int(word) for word in rng.integers(0, 2**64, 3000, dtype=np.uint64)]
    # Half of the words are boundaries: of coins of 1/k, and of the exponents of small sizes.
    first = discrete._bracket(discrete._law(variance), np.arange(2))[1].tolist()
    pool = [*BOUNDARIES, *(value // k for value in first for k in (1, 2))]
    edges = rng.choice(len(pool), len(honest))
    words = [
        pool[edge] << 2 | word & 3 if rng.random() < 0.5 else word
        for edge, word in zip(edges, honest, strict=True)
    ]
    settled: list[int] = []
    asked = discrete._is_under

    def counted(start: int, bound: Fraction, source: Recorded) -> bool:
        settled.append(start)
        return asked(start, bound, source)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(discrete, "_is_under", counted)
        mine, theirs = decisions(variance, words)
    assert mine == theirs
    assert len(settled) > 20, "no word fell between the integers: this test would prove nothing"


def test_integers_bracket_every_exponent() -> None:
    for variance in (*SMALL, *LARGE, Fraction(2**56, 2**56 - 1), Fraction(2**55, 2**56)):
        law = discrete._law(variance)
        ends = [0, 1, law.scale, FAR * law.scale - 1, FAR * law.scale, 1000 * law.scale]
        anywhere = np.random.default_rng(1).integers(0, FAR * law.scale, 200).tolist()
        sizes = np.array([*ends, *anywhere, int(variance / law.scale)])
        wholes, low, high = discrete._bracket(law, sizes)
        for size, whole, below, above in zip(sizes.tolist(), wholes, low, high, strict=True):
            rest = (law.exponent(size) - int(whole)) * ONE
            assert int(below) <= rest <= int(above)
            assert 0 <= rest < ONE
            assert int(above) - int(below) <= ONE >> 10


def test_no_float_takes_part() -> None:
    tree = ast.parse(Path(discrete.__file__).read_text())
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    floats = {"float", "float64", "float32", "math", "exp", "log", "sqrt", "divide", "random", "round", "pi"}
    assert not names & floats
    constants = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    assert not [value for value in constants if isinstance(value, float)]
    values, stays = discrete._candidates(discrete._law(Fraction(7, 3)), 64, SecretSource())
    assert values.dtype == np.int64
    assert stays.dtype == np.bool_


def test_neighbouring_draws_and_signs_have_nothing_in_common() -> None:
    draws = discrete_gaussians(Fraction(10**6), N, SecretSource()).astype(float)
    for lag in (1, 2, discrete.BLOCK // 2):
        for one, other in ((draws, draws), (draws**2, draws**2), (np.abs(draws), np.sign(draws))):
            assert abs(np.corrcoef(one[:-lag], other[lag:])[0, 1]) < 6 / np.sqrt(N - lag)
    assert abs(np.corrcoef(np.abs(draws), np.sign(draws))[0, 1]) < 6 / np.sqrt(N)


def test_no_word_is_used_twice_and_two_requests_share_nothing() -> None:
    source = SecretSource()
    one, other = (discrete_gaussians(Fraction(2**50), 1000, source) for _ in range(2))
    assert len(set(one.tolist()) | set(other.tolist())) == 2000


def test_no_draw_at_all_is_fine_and_the_number_asked_for_is_given() -> None:
    for n in (0, 1, 2, discrete.BLOCK + 1):
        assert len(discrete_gaussians(Fraction(3), n, SecretSource())) == n


@pytest.mark.parametrize(
    "variance",
    [Fraction(0), Fraction(-4), Fraction(499, 1000), Fraction(2**56 + 1), Fraction(2**58, 2**56 + 1)],
)
def test_a_variance_that_the_integers_cannot_carry_is_refused(variance: Fraction) -> None:
    with pytest.raises(PrivacyError, match="variance"):
        discrete_gaussians(variance, 1, SecretSource())
