"""`python -m sottovoce.simulations.mutants [NAME ...]`: walks into every known trap, and asks whether a test cries out.

A mutant is one mistake that others have made, written into a copy of the source by replacing one text. The test
that is named beside it must pass on the untouched copy and fail on the mutant: then the mutant is killed. A
mutant that survives is a promise that nothing holds.

Guarantees:
  - The working tree is never touched; each mutant lives in its own copy.
  - A text that does not occur exactly once, a test that does not exist, or a test that cannot start is an error of
    the table, reported as such and never as a kill.
  - Exit status 0 only if every mutant was killed and every trap of the notes (T1 to T18) has one.

Whoever adds a guarantee adds a `Mutant` to `MUTANTS` and a line to `docs/pitfalls.md`; a test compares the two.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
COPIED = (
    "common",
    "client",
    "server",
    "simulations",
    "src",
    "tests",
    "pyproject.toml",
    "README.md",
    "docs",
    "deploy",
)
TRAPS = tuple(f"T{number}" for number in range(1, 19))
PRIVACY, LEDGER, CLIENT = "tests/common/privacy", "tests/common/ledger", "tests/client"
AUDIT = "tests/simulations/test_audit.py"
TIMEOUT_SECONDS = 600  # of one test on a busy machine

Outcome = Literal["killed", "SURVIVED", "does not apply", "test does not pass", "test did not run"]


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One mistake: in `path`, `old` (there exactly once) becomes `new`; then `test` (a pytest id) must fail.

    `trap` is T1 to T18, or a name of our own (P1, ...) for what the notes did not list.
    """

    name: str
    trap: str
    what: str
    path: str
    old: str
    new: str
    test: str


MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        name="accountant-per-round",
        trap="T1",
        what="Only the last round is accounted",
        path="common/privacy/plan.py",
        old="training_event(spec, spec.steps_in(rounds)), *",
        new="training_event(spec, spec.steps_per_round), *",
        test=f"{PRIVACY}/test_traps.py::test_t01_rounds_compose_in_one_account",
    ),
    Mutant(
        name="epsilons-added",
        trap="T2",
        what="The epsilons of events are added up",
        path="common/privacy/accountant.py",
        old="    conceded = conceded_delta(events)\n",
        new="    if len(events) > 1:\n"
        "        return sum(_epsilon((event,), delta, grid, adjacency) for event in events)\n"
        "    conceded = conceded_delta(events)\n",
        test=f"{PRIVACY}/test_traps.py::test_t02_events_compose_and_epsilons_are_not_added",
    ),
    Mutant(
        name="shuffled-batches",
        trap="T3",
        what="A shuffled batch of fixed size instead of independent coins",
        path="common/privacy/sampling.py",
        old="    drawn[list(withdrawn)] = False\n",
        new="    drawn[:] = False\n    drawn[np.argsort(words)[: round(n_units * sampling_prob)]] = True\n",
        test=f"{PRIVACY}/test_traps.py::test_t03_draws_are_independent_coins_and_not_shuffled_batches",
    ),
    Mutant(
        name="divisor-from-the-draw",
        trap="T4",
        what="The sum is divided by how many were drawn",
        path="common/privacy/plan.py",
        old="spec.noise_multiplier, source), spec.expected_patients)",
        new="spec.noise_multiplier, source), max(1, len(gradients.values)))",
        test=f"{PRIVACY}/test_traps.py::test_t04_the_divisor_does_not_depend_on_who_was_drawn",
    ),
    Mutant(
        name="probability-from-the-population",
        trap="T4",
        what="q is the expected draw over the true number of patients",
        path="common/privacy/plan.py",
        old="        n_patients, sampling_prob=spec.sampling_prob,",
        new="        n_patients, sampling_prob=min(1.0, spec.expected_patients / n_patients),",
        test=f"{PRIVACY}/test_traps.py::test_t04_the_probability_does_not_depend_on_how_many_there_are",
    ),
    Mutant(
        name="one-adjacency",
        trap="T5",
        what="The figure for replacing a patient is that for removing one",
        path="common/privacy/accountant.py",
        old='    relation = replaces if adjacency == "replace_one" else NeighboringRelation.ADD_OR_REMOVE_ONE\n',
        new="    relation = NeighboringRelation.ADD_OR_REMOVE_ONE\n",
        test=f"{PRIVACY}/test_traps.py::test_t05_adjacency_is_stated_and_both_are_printed",
    ),
    Mutant(
        name="flattering-delta",
        trap="T6",
        what="A delta of N^-1.1 is accepted",
        path="common/privacy_specs.py",
        old="    if spec.delta >= largest:\n",
        new="    if spec.delta > 2 * largest:\n",
        test=f"{PRIVACY}/test_traps.py::test_t06_delta_cannot_be_picked_to_flatter",
    ),
    Mutant(
        name="loss-normalised-by-the-batch",
        trap="T7",
        what="Class weights are divided by the batch's own sum",
        path="common/models/losses.py",
        old="        values = values * values.new_tensor(class_weights)[labels]\n",
        new="        weights = values.new_tensor(class_weights)[labels]\n"
        "        values = values * weights / weights.sum() * len(weights)\n",
        test="tests/common/test_models.py::test_a_patients_gradient_does_not_change_with_the_batch_around_it",
    ),
    Mutant(
        name="mean-over-the-longest",
        trap="T8",
        what="A mean over time is divided by the batch's longest recording",
        path="common/models/layers.py",
        old="    return blank_padding(values, lengths).sum(1) / lengths[:, None]\n",
        new="    return blank_padding(values, lengths).sum(1) / lengths.max()\n",
        test="tests/common/test_models.py::test_a_patients_gradient_does_not_change_with_the_batch_around_it",
    ),
    Mutant(
        name="corpus-statistics",
        trap="T9",
        what="Features are normalised by statistics of the private corpus",
        path="common/study.py",
        old='    scheme: Literal["constants", "utterance", "speaker"]\n',
        new='    scheme: Literal["constants", "utterance", "speaker", "corpus"]\n',
        test=f"{PRIVACY}/test_traps.py::test_t09_no_statistic_of_the_corpus_normalises_it",
    ),
    Mutant(
        name="seeded-noise",
        trap="T10",
        what="The key of a release comes from a seedable generator",
        path="common/privacy/source.py",
        old="keystream(os.urandom(32))",
        new="keystream(np.random.bytes(32))",
        test=f"{PRIVACY}/test_traps.py::test_t10_nobody_can_seed_the_noise_of_a_release",
    ),
    Mutant(
        name="drawn-by-recording",
        trap="T11",
        what="Recordings are drawn, and every patient of one takes part",
        path="common/privacy/plan.py",
        old="    recordings = choose_recordings(owners, patients,",
        new="    drawn = draw_units(\n"
        "        len(owners), sampling_prob=spec.sampling_prob, cap=len(owners), source=source\n"
        "    )\n"
        "    patients = np.unique(owners[drawn])\n"
        "    recordings = choose_recordings(owners, patients,",
        test=f"{PRIVACY}/test_traps.py::test_t11_a_patient_with_many_recordings_is_drawn_no_more_often",
    ),
    Mutant(
        name="steps-accumulated",
        trap="T12",
        what="Accumulated releases are counted as one step",
        path="common/privacy/plan.py",
        old="        steps=sum(step.steps for step in steps),\n",
        new="        steps=1,\n",
        test=f"{PRIVACY}/test_traps.py::test_t12_every_release_is_a_step_and_no_step_takes_more_than_the_cap",
    ),
    Mutant(
        name="resend-anything",
        trap="T13",
        what="After a commit, other bytes go out as a retry, uncharged",
        path="common/privacy/budget.py",
        old="            return same_digest(found.released, self._released(release, released))\n",
        new="            return True\n",
        test=f"{LEDGER}/test_budget.py::test_the_same_bytes_may_be_sent_again_and_no_others",
    ),
    Mutant(
        name="trials-for-free",
        trap="T15",
        what="A study tried before, with other constants, is not counted",
        path="common/ledger/rule.py",
        old="    together = merged([*promised, *charges])\n",
        new="    together = merged(charges)\n",
        test=f"{LEDGER}/test_budget.py::test_studies_add_up_in_their_domain_by_the_filter",
    ),
    Mutant(
        name="steps-from-a-rate",
        trap="T14",
        what="A step count is computed as 1 / (1 / n)",
        path="common/privacy_specs.py",
        old="return (rounds + self.spare_rounds) * self.steps_per_round",
        new="return (rounds + self.spare_rounds) * int(1 / (1 / self.steps_per_round))",
        test=f"{PRIVACY}/test_traps.py::test_t14_step_counts_survive_because_they_are_never_divided",
    ),
    Mutant(
        name="optimistic-accountant",
        trap="T16",
        what="An optimistic accountant: 1 % below",
        path="common/privacy/accountant.py",
        old="    return max(0.0, float(pld.get_epsilon_for_delta(left)))\n",
        new="    return max(0.0, 0.99 * float(pld.get_epsilon_for_delta(left)))\n",
        test=f"{PRIVACY}/test_traps.py::test_t16_the_accountant_is_never_below_the_truth",
    ),
    Mutant(
        name="gdp",
        trap="T16",
        what="GDP, which under-reports, is imported for a figure",
        path="common/privacy/prv.py",
        old="    from opacus.accountants import PRVAccountant\n",
        new="    from opacus.accountants import GaussianAccountant as PRVAccountant\n",
        test=f"{PRIVACY}/test_traps.py::test_t16_nobody_asks_gdp",
    ),
    Mutant(
        name="rdp-orders-dropped-silently",
        trap="T17",
        what="Orders that did not converge are left out without a word",
        path="common/privacy/accountant.py",
        old="    return values, tuple(sorted(silent | set(dropped)))\n",
        new="    return values, ()\n",
        test=f"{PRIVACY}/test_traps.py::test_t17_dropped_rdp_orders_are_recorded",
    ),
    Mutant(
        name="amplified-by-participation",
        trap="T18",
        what="Amplification over hospitals is claimed",
        path="common/privacy/plan.py",
        old="        sampling_prob=spec.sampling_prob,\n        steps=",
        new="        sampling_prob=spec.sampling_prob * 0.5,\n        steps=",
        test=f"{PRIVACY}/test_traps.py::test_t18_taking_part_in_fewer_rounds_amplifies_nothing",
    ),
    Mutant(
        name="population-taken-for-exact",
        trap="P1",
        what="Truncated draws are accounted by the library's event, as if the upper bound were the number",
        path="common/privacy/accountant.py",
        old="    displaced = gaussian(event.noise_multiplier / 2, event.sampling_prob, replaces)\n",
        new="    kept = event.cap / event.n_patients\n"
        "    displaced = gaussian(event.noise_multiplier / 2, kept, replaces)\n",
        test=f"{PRIVACY}/test_accountant.py::test_a_public_bound_far_above_the_true_number_does_not_flatter",
    ),
    Mutant(
        name="unit-is-the-recording",
        trap="P2",
        what="A patient's figure is that of one recording",
        path="common/privacy/plan.py",
        old="        records_per_patient=spec.records_per_patient,\n",
        new="        records_per_patient=1,\n",
        test=f"{PRIVACY}/test_plan.py::test_unit_utterance_is_charged_as_the_patient",
    ),
    Mutant(
        name="no-clipping",
        trap="P3",
        what="Gradients are not clipped",
        path="common/privacy/clip.py",
        old="    factors[outside] = bound / norms[outside] * SHRINK\n",
        new="",
        test=f"{PRIVACY}/test_clip.py::test_no_row_is_longer_than_the_bound_in_exact_arithmetic",
    ),
    Mutant(
        name="clip-without-a-margin",
        trap="P3",
        what="The factor of clipping is rounded as it comes",
        path="common/privacy/clip.py",
        old="    factors[outside] = bound / norms[outside] * SHRINK\n",
        new="    factors[outside] = bound / norms[outside]\n",
        test=f"{PRIVACY}/test_clip.py::test_no_row_is_longer_than_the_bound_in_exact_arithmetic",
    ),
    Mutant(
        name="no-integer-check",
        trap="P3",
        what="What was rounded is not checked again",
        path="common/privacy/clip.py",
        old="        if not len(outside):\n",
        new="        if True:\n",
        test=f"{PRIVACY}/test_clip.py::test_an_unclipped_row_does_not_pass_the_integer_check",
    ),
    Mutant(
        name="noise-at-two-thirds",
        trap="P4",
        what="Noise has two thirds of its deviation",
        path="common/privacy/noise.py",
        old="    deviation = noise_multiplier * total.clip_norm / total.grid_step\n",
        new="    deviation = noise_multiplier * total.clip_norm / total.grid_step * 2 / 3\n",
        test=f"{PRIVACY}/test_noise.py::test_noise_at_the_right_scale_passes",
    ),
    Mutant(
        name="noise-forgets-the-clip-norm",
        trap="P4",
        what="Noise is not scaled by the clipping norm",
        path="common/privacy/noise.py",
        old="    deviation = noise_multiplier * total.clip_norm / total.grid_step\n",
        new="    deviation = noise_multiplier / total.grid_step\n",
        test=f"{PRIVACY}/test_noise.py::test_noise_at_the_right_scale_passes",
    ),
    Mutant(
        name="one-key-for-all",
        trap="P5",
        what="All releases of a process share one key",
        path="common/privacy/source.py",
        old="        self._next = keystream(os.urandom(32))\n",
        new="        self._next = keystream(b'0' * 32)\n",
        test=f"{PRIVACY}/test_source.py::test_two_releases_share_nothing",
    ),
    Mutant(
        name="forked-stream",
        trap="P5",
        what="A forked worker goes on with its parent's stream",
        path="common/privacy/source.py",
        old="        if self._made_at != _forks:\n",
        new="        if False:\n",
        test=f"{PRIVACY}/test_source.py::test_a_fork_does_not_share_the_stream",
    ),
    Mutant(
        name="public-coins",
        trap="P6",
        what="A seeded source is let into a study that does not say so",
        path="common/privacy/plan.py",
        old="    if source.simulated and not spec.seeded_noise:\n",
        new="    if False:\n",
        test=f"{PRIVACY}/test_plan.py::test_a_seeded_source_needs_a_study_that_says_so",
    ),
    Mutant(
        name="stamp-lost",
        trap="P6",
        what="A round with one simulated step is not stamped",
        path="common/privacy/plan.py",
        old="        simulated=any(step.simulated for step in steps),\n",
        new="        simulated=all(step.simulated for step in steps),\n",
        test=f"{PRIVACY}/test_plan.py::test_one_simulated_step_marks_the_whole_round",
    ),
    Mutant(
        name="withdrawn-drawn",
        trap="P7",
        what="A patient who withdrew is drawn",
        path="common/privacy/sampling.py",
        old="    drawn[list(withdrawn)] = False\n",
        new="",
        test=f"{PRIVACY}/test_sampling.py::test_the_withdrawn_are_never_drawn_and_nobody_elses_coin_changes",
    ),
    Mutant(
        name="first-of-the-draw",
        trap="P8",
        what="A draw beyond the cap keeps the first, not a random subset",
        path="common/privacy/sampling.py",
        old='    return np.sort(items[np.argsort(source.words(len(items)), kind="stable")[:size]])\n',
        new="    return items[:size]\n",
        test=f"{PRIVACY}/test_sampling.py::test_a_draw_beyond_the_cap_keeps_every_unit_alike",
    ),
    Mutant(
        name="order-of-stages",
        trap="P9",
        what="Noise takes gradients that were not clipped",
        path="common/privacy/noise.py",
        old="def add_noise(total: QuantisedSum, noise_multiplier",
        new="def add_noise(total: object, noise_multiplier",
        test=f"{PRIVACY}/test_stages.py::test_every_wrong_order_is_refused_by_the_type_checker",
    ),
    Mutant(
        name="order-chosen-at-the-end",
        trap="P10",
        what="The filter takes whichever order flatters what was charged",
        path="common/privacy/filter.py",
        old="    total = math.fsum(charge.steps * _step(charge, order) for charge in charges)\n",
        new="    charges = list(charges)\n"
        "    sums = {a: math.fsum(c.steps * _step(c, a) for c in charges) for a in ORDERS}\n"
        "    order = min(ORDERS, key=lambda a: sums[a] + _price(a, delta))\n"
        "    total = sums[order]\n",
        test=f"{LEDGER}/test_budget.py::test_the_order_is_the_openings_and_not_the_one_that_flatters_at_the_end",
    ),
    Mutant(
        name="order-follows-the-cap",
        trap="P10",
        what="A cap that moved takes the filter's order along",
        path="common/ledger/rule.py",
        old="order=order_of(opened))",
        new="order=fixed_order(cap, opened.delta))",
        test=f"{LEDGER}/test_budget.py::test_a_cap_that_moves_does_not_move_the_order",
    ),
    Mutant(
        name="dealt-folds",
        trap="P11",
        what="Folds are dealt in a private mode",
        path="common/study.py",
        old="    if isinstance(study.evaluation.folds, SpeakerFolds):\n",
        new="    if False:\n",
        test="tests/common/test_study.py::test_a_private_study_that_lets_one_patient_change_more_is_refused",
    ),
    Mutant(
        name="silent-where-nobody-is-drawn",
        trap="P12",
        what="A step in which nobody is drawn releases nothing",
        path="client/train_private.py",
        old="            gradients = _gradients(",
        new="            if not len(drawn.recordings):\n                continue\n            gradients = _gradients(",
        test=f"{CLIENT}/test_train_private.py::test_a_site_without_patients_releases_noise",
    ),
    Mutant(
        name="withdrawal-not-handed-on",
        trap="P7",
        what="The list of those who withdrew does not reach the sampler",
        path="client/train_private.py",
        old="if patient in withdrawn]",
        new="if patient in ()]",
        test=f"{CLIENT}/test_train_private.py::test_who_withdrew_changes_no_bit",
    ),
    Mutant(
        name="another-answer-to-the-same-question",
        trap="P13",
        what="A site that is asked again trains again",
        path="client/site_ledger.py",
        old="            if kept is not None and self.budget.may_resend(key, kept):\n",
        new="            if False:\n",
        test=f"{CLIENT}/test_releases.py::test_the_same_question_gets_the_same_bytes_and_spends_nothing_more",
    ),
    Mutant(
        name="privacy-off-by-a-message",
        trap="P14",
        what="A run's configuration, which the coordinator writes, turns privacy off",
        path="client/app.py",
        old='    if not context.node_config.get("without-privacy", False):\n',
        new='    if not (context.node_config | context.run_config).get("without-privacy", False):\n',
        test=f"{CLIENT}/test_releases.py::test_only_a_node_s_own_configuration_makes_it_a_twin_and_never_beside_a_ledger",
    ),
    Mutant(
        name="loss-beside-the-update",
        trap="P15",
        what="A private reply states one number more",
        path="client/app.py",
        old='{"n-steps": steps}, released)',
        new='{"n-steps": steps, "n-examples": len(data)}, released)',
        test=f"{CLIENT}/test_releases.py::test_no_word_in_a_message_turns_privacy_off",
    ),
    Mutant(
        name="counts-of-every-recording",
        trap="P16",
        what="A withheld patient counts with all recordings, however many",
        path="client/releases.py",
        old="first_recordings(owners, n_most=n_most)",
        new="first_recordings(owners, n_most=len(owners))",
        test=f"{CLIENT}/test_releases.py::test_a_patient_counts_at_most_so_many_recordings",
    ),
    Mutant(
        name="reason-told",
        trap="P17",
        what="The coordinator is told why a site released nothing",
        path="client/releases.py",
        old="        raise Refusal(NOTHING_RELEASED) from None\n    if isinstance(",
        new="        raise Refusal(str(error)) from None\n    if isinstance(",
        test=f"{CLIENT}/test_releases.py::test_a_failure_is_burned_and_its_reason_stays_at_the_site",
    ),
    Mutant(
        name="audit-forgets-delta",
        trap="P18",
        what="The audit's bound leaves out the term of delta",
        path="simulations/audit/bound.py",
        old="    return min(1.0, tail + 2.0 * guesses.n_canaries * delta * steepest)\n",
        new="    return min(1.0, tail)\n",
        test=f"{AUDIT}::test_the_p_value_is_the_theorems_over_every_outcome",
    ),
    Mutant(
        name="best-of-several-guesses",
        trap="P18",
        what="The best of several shares of guesses is judged as if it had been the only one",
        path="simulations/audit/bound.py",
        old="    each = error / len(shares)\n",
        new="    each = error\n",
        test=f"{AUDIT}::test_scores_that_know_nothing_prove_nothing",
    ),
    Mutant(
        name="attackers-know-the-attacked",
        trap="P19",
        what="An attack is measured on the speakers that it learned from",
        path="simulations/audit/updates.py",
        old="        halves[order] = np.arange(len(order)) % 2\n",
        new="        halves[order] = 0\n",
        test=f"{AUDIT}::test_halves_of_attackers_and_attacked_share_no_speaker_and_no_lack_of_a_sex",
    ),
    Mutant(
        name="one-discrete-gaussian",
        trap="P20",
        what="A sum of discrete Gaussians is accounted as one",
        path="common/privacy/distributed_accountant.py",
        old="    extra = tau(share, n_shares)\n",
        new="    extra = 0.0\n",
        test=f"{PRIVACY}/test_distributed_accountant.py::test_a_sum_of_discrete_gaussians_is_not_taken_for_one",
    ),
    Mutant(
        name="amplified-by-the-square",
        trap="P20",
        what="Sampling is accounted as q^2 times the figure without it, at every order",
        path="common/privacy/distributed_accountant.py",
        old="    return min(whole, _log_sum(terms) / (order - 1))\n",
        new="    return q * q * whole\n",
        test=f"{PRIVACY}/test_distributed_accountant.py::test_a_step_is_never_below_the_exact_divergence",
    ),
    Mutant(
        name="all-the-noise-for-each-site",
        trap="P20",
        what="A patient in k sites is accounted as k steps that each have all of the noise",
        path="common/privacy/distributed_accountant.py",
        old="    part = share / n_sites\n",
        new="    part = share\n",
        test=f"{PRIVACY}/test_distributed_accountant.py::test_a_patient_in_several_sites_is_never_below_the_exact_divergence",
    ),
    Mutant(
        name="noise-shared-among-all",
        trap="P21",
        what="The noise is dealt out to all sites: those who drop out, and colluders, take their part of it away",
        path="common/privacy/distributed.py",
        old="        exact = deviation**2 / (self.n_min - self.n_colluding)\n",
        new="        exact = deviation**2 / self.n_sites\n",
        test=f"{PRIVACY}/test_distributed.py::test_the_least_shares_never_have_less_than_the_promised_variance",
    ),
    Mutant(
        name="colluders-ignored",
        trap="P21",
        what="Colluding sites know their shares, and the figure counts them",
        path="common/privacy/distributed_accountant.py",
        old="        return self.n_min - (self.n_colluding if n_colluding is None else n_colluding)\n",
        new="        return self.n_min\n",
        test=f"{PRIVACY}/test_distributed_accountant.py::test_colluding_sites_take_their_shares_off",
    ),
    Mutant(
        name="part-of-the-ring-not-kept",
        trap="P22",
        what="A site adds numbers that can make the sum of all wrap around",
        path="common/privacy/distributed.py",
        old="    if np.abs(values).max() > mechanism.largest_entry:\n",
        new="    if False:\n",
        test=f"{PRIVACY}/test_distributed.py::test_a_site_whose_own_sum_does_not_fit_releases_nothing",
    ),
    Mutant(
        name="laplace-for-gaussian",
        trap="P23",
        what="The last coin of the sampler is not tossed: discrete Laplace noise",
        path="common/privacy/discrete.py",
        old="    stays[lanes[kept[heads]]] = True\n",
        new="    stays[lanes[kept]] = True\n",
        test=f"{PRIVACY}/test_discrete.py::test_draws_have_the_law_of_their_variance",
    ),
    Mutant(
        name="probabilities-rounded",
        trap="P23",
        what="Coins of the sampler are decided by rounded probabilities",
        path="common/privacy/discrete.py",
        old="                under[i] = _is_under(int(uniform[i]), exact(int(lanes[i])) / k, source)\n",
        new="                under[i] = False\n",
        test=f"{PRIVACY}/test_discrete.py::test_words_that_fall_on_a_boundary_are_decided_as_fractions_decide",
    ),
    Mutant(
        name="passes-that-follow-the-draw",
        trap="P24",
        what="As many utterances in a pass as were drawn",
        path="client/private/bookkeeping.py",
        old="take(batch, rows.order).filled(self._utterances)",
        new="take(batch, rows.order)",
        test=f"{CLIENT}/private/test_gradients.py::"
        "test_a_patients_row_is_the_same_bits_whoever_is_drawn_and_wherever_it_stands",
    ),
    Mutant(
        name="refused-because-of-one-patient",
        trap="P25",
        what="A gradient that is not finite ends the round",
        path="common/privacy/clip.py",
        old="    if strange.any():\n",
        new='    if strange.any():\n        raise PrivacyError("not finite")\n',
        test=f"{CLIENT}/test_releases.py::test_weights_that_overflow_for_one_patient_get_an_answer_like_any_other",
    ),
    Mutant(
        name="counts-beside-the-ledger",
        trap="P26",
        what="In mode none a site with a ledger evaluates without asking it",
        path="client/app.py",
        old="    if _keeps_ledger(context):\n        payload",
        new="    if False:\n        payload",
        test=f"{CLIENT}/test_releases.py::test_a_site_with_a_ledger_asks_it_before_mode_none_too",
    ),
    Mutant(
        name="errors-told",
        trap="P17",
        what="An error outside training is sent as it is: it names files, ids and counts",
        path="client/app.py",
        old="            raise Refusal(NOTHING_RELEASED) from None\n",
        new="            raise\n",
        test=f"{CLIENT}/test_releases.py::test_an_error_of_a_hospital_names_no_person_no_path_and_no_count",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of a mutant."""

    mutant: Mutant
    outcome: Outcome


def main(arguments: Sequence[str]) -> int:
    """Runs the mutants that were named, or all; prints the table."""
    parser = argparse.ArgumentParser(prog="python -m sottovoce.simulations.mutants")
    parser.add_argument("names", nargs="*", metavar="NAME", help="names or traps (T1); all by default")
    chosen = parser.parse_args(arguments).names
    mutants = [m for m in MUTANTS if not chosen or m.name in chosen or m.trap in chosen]
    if not mutants:
        parser.error(f"expected names of {', '.join(m.name for m in MUTANTS)}; came {', '.join(chosen)}")
    console, verdicts = Console(), []
    for verdict in judged(mutants):
        verdicts.append(verdict)
        console.print(f"{len(verdicts):>3}/{len(mutants)} {verdict.mutant.name}: {verdict.outcome}")
    console.print(table_of(verdicts))
    unheld = [] if chosen else [trap for trap in TRAPS if trap not in {m.trap for m in MUTANTS}]
    if unheld:
        console.print(f"Traps without a mutant: {', '.join(unheld)}.")
    return 1 if unheld or any(verdict.outcome != "killed" for verdict in verdicts) else 0


def judged(mutants: Sequence[Mutant], root: Path = ROOT) -> Iterator[Verdict]:
    """Yields each mutant's verdict. The untouched copy comes first: a test that fails there proves nothing."""
    with _copy(root) as clean:
        sound = {test: _pytest(clean, test) for test in dict.fromkeys(m.test for m in mutants)}
    for mutant in mutants:
        yield Verdict(mutant=mutant, outcome=_outcome(mutant, sound[mutant.test], root))


def table_of(verdicts: Sequence[Verdict]) -> Table:
    """Returns trap, mutant, test and verdict of each, as a table."""
    killed = sum(verdict.outcome == "killed" for verdict in verdicts)
    table = Table(title=f"{killed} of {len(verdicts)} mutants killed", title_justify="left")
    for heading in ("trap", "mutant", "test", "verdict"):
        table.add_column(heading, overflow="fold")
    for verdict in sorted(verdicts, key=lambda v: (v.mutant.trap[0] != "T", int(v.mutant.trap[1:]))):
        mutant = verdict.mutant
        table.add_row(mutant.trap, mutant.what, mutant.test.split("::")[1], verdict.outcome)
    return table


def _outcome(mutant: Mutant, sound: int, root: Path) -> Outcome:
    if sound != 0:
        return "test does not pass" if sound == 1 else "test did not run"
    with _copy(root) as mutated:
        file = mutated / mutant.path
        text = file.read_text() if file.is_file() else ""
        if text.count(mutant.old) != 1:
            return "does not apply"
        file.write_text(text.replace(mutant.old, mutant.new))
        status = _pytest(mutated, mutant.test)
    # pytest: 0 all passed, 1 some failed; anything else means that no test was run.
    return {0: "SURVIVED", 1: "killed"}.get(status, "test did not run")  # type: ignore[return-value]


@contextmanager
def _copy(root: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        for name in COPIED:
            source, target = root / name, Path(folder) / name
            if source.is_dir():
                shutil.copytree(
                    source, target, ignore=shutil.ignore_patterns("__pycache__", "*.wav", "*.flac")
                )
            elif source.is_file():
                shutil.copy2(source, target)
        yield Path(folder)


def _pytest(folder: Path, test: str) -> int:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", test]
    environment = os.environ | {"PYTHONPATH": str(folder / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        return subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, timeout=TIMEOUT_SECONDS, check=False
        ).returncode
    except subprocess.TimeoutExpired:
        return -1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
