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
SECAGG = "tests/common/secagg"
SECURE, SECURE_ROUNDS = f"{CLIENT}/test_secure.py", "tests/simulations/test_secure_rounds.py"
SECURE_HOSTILE = "tests/simulations/test_secure_hostile.py"
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
        old='    scheme: Literal["constants", "utterance", "speaker", "enrolment"]\n',
        new='    scheme: Literal["constants", "utterance", "speaker", "enrolment", "corpus"]\n',
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
        old="            step = release(pool.drawn(spec, engine, source, flat.values.device), spec, source)\n",
        new="            drawn = pool.drawn(spec, engine, source, flat.values.device)\n"
        "            if not len(drawn.values):\n"
        "                continue\n"
        "            step = release(drawn, spec, source)\n",
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
        old='return {"n-steps": steps}, ',
        new='return {"n-steps": steps, "n-examples": len(data)}, ',
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
        old="    if not _keeps_ledger(context):\n        return confusion(",
        new="    if True:\n        return confusion(",
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
    Mutant(
        name="summed-below-n-min",
        trap="P21",
        what="A sum of fewer sites than the noise was sized for is decoded",
        path="common/privacy/distributed.py",
        old="    if not mechanism.n_min <= n_summed <= mechanism.n_sites:\n",
        new="    if n_summed > mechanism.n_sites:\n",
        test=f"{PRIVACY}/test_distributed.py::test_a_sum_of_too_few_sites_is_not_decoded",
    ),
    Mutant(
        name="room-without-patients",
        trap="P22",
        what="The chance of an overflow is that of the noise alone",
        path="common/privacy/distributed.py",
        old="        room = self.largest_entry - self.cap * math.isqrt(self.squared_norm)\n",
        new="        room = self.largest_entry\n",
        test=f"{PRIVACY}/test_distributed.py::test_a_grid_that_could_overflow_is_refused_and_the_finest_that_cannot_is_found",
    ),
    Mutant(
        name="overflow-for-free",
        trap="P22",
        what="A sum that may overflow costs no delta",
        path="common/privacy/distributed_accountant.py",
        old="(n_sites * _truncation(event) + event.overflow_prob) for",
        new="(n_sites * _truncation(event)) for",
        test=f"{PRIVACY}/test_distributed_accountant.py::test_full_draws_and_overflows_are_taken_off_delta",
    ),
    Mutant(
        name="seeded-shares",
        trap="P6",
        what="A share of noise is drawn from a seeded source though the study does not say so",
        path="common/privacy/distributed.py",
        old="    _check_source(mechanism, source)\n    n_rows",
        new="    n_rows",
        test=f"{PRIVACY}/test_distributed.py::test_nothing_is_released_from_what_the_mechanism_was_not_priced_for",
    ),
    Mutant(
        name="more-patients-than-the-cap",
        trap="P22",
        what="A site adds more patients than the cap that its part of the ring was worked out for",
        path="common/privacy/distributed.py",
        old="    if n_rows > mechanism.cap or width",
        new="    if width",
        test=f"{PRIVACY}/test_distributed.py::test_nothing_is_released_from_what_the_mechanism_was_not_priced_for",
    ),
    Mutant(
        name="self-mask-left-off",
        trap="P27",
        what="A vector leaves under pairwise masks alone",
        path="common/secagg/steps.py",
        old="    masks.add_mask(total, state.self_mask, sign=1)\n",
        new="",
        test=f"{SECAGG}/test_reference.py::test_the_reference_agrees_on_fresh_transcripts",
    ),
    Mutant(
        name="both-shares-revealed",
        trap="P27",
        what="A site reveals shares of both secrets of a survivor",
        path="common/secagg/steps.py",
        old="for dealer, it in shares.items() if dealer not in survivors),",
        new="for dealer, it in shares.items()),",
        test=f"{SECAGG}/test_participant.py::test_for_each_dealer_one_kind_of_share_is_revealed_never_both",
    ),
    Mutant(
        name="threshold-rounded-down",
        trap="P27",
        what="The threshold is two thirds rounded down",
        path="common/secagg/session.py",
        old="    return -(-2 * n_sites // 3)\n",
        new="    return 2 * n_sites // 3\n",
        test=f"{SECAGG}/test_parts.py::"
        "test_the_threshold_is_two_thirds_rounded_up_and_beats_colluders_below_a_third",
    ),
    Mutant(
        name="threshold-as-stated",
        trap="P27",
        what="A site takes the threshold that the coordinator states",
        path="common/secagg/session.py",
        old="    if session.threshold != threshold_of(session.n_sites):\n",
        new="    if False:\n",
        test=f"{SECAGG}/test_deviations.py::"
        "test_a_deviation_is_refused_for_its_reason_with_a_signed_complaint",
    ),
    Mutant(
        name="share-of-a-lower-degree",
        trap="P27",
        what="Shares are of a polynomial one degree short",
        path="common/secagg/shamir.py",
        old="for _ in range(threshold - 1))",
        new="for _ in range(threshold - 2))",
        test=f"{SECAGG}/test_traps.py::test_one_share_less_than_the_threshold_is_not_the_secret",
    ),
    Mutant(
        name="survivors-without-n-min",
        trap="P27",
        what="Fewer survivors than the noise was sized for are unmasked",
        path="common/secagg/steps.py",
        old='    _refuse_below(session.quorum, len(survivors), "survivors")\n',
        new='    _refuse_below(session.threshold, len(survivors), "survivors")\n',
        test=f"{SECAGG}/test_deviations.py::"
        "test_a_deviation_is_refused_for_its_reason_with_a_signed_complaint",
    ),
    Mutant(
        name="summed-with-one-other",
        trap="P27",
        what="A site is summed with one other",
        path="common/secagg/session.py",
        old="        return max(self.threshold, MIN_SITES, self.n_min)\n",
        new="        return max(self.threshold, self.n_min)\n",
        test=f"{SECAGG}/test_traps.py::"
        "test_nobody_is_summed_with_fewer_than_two_others_though_the_study_allows_it",
    ),
    Mutant(
        name="consent-without-its-view",
        trap="P28",
        what="Signatures under the same survivors are taken for consent, whatever dealers and adverts they saw",
        path="common/secagg/steps.py",
        old="        if _body(message, Kind.CONSENT, session, sender) != state.consent.encode():\n",
        new="        if not _body(message, Kind.CONSENT, session, sender).endswith(state.consent.encode()[32:]):\n",
        test=f"{SECAGG}/test_traps.py::"
        "test_a_consent_under_other_dealers_or_another_view_is_refused_though_its_survivors_are_the_same",
    ),
    Mutant(
        name="no-consistency-round",
        trap="P28",
        what="Signatures of others are not counted before shares are revealed",
        path="common/secagg/steps.py",
        old='    _refuse_below(session.threshold, len(senders), "consent")\n',
        new="",
        test=f"{SECAGG}/test_deviations.py::"
        "test_a_deviation_is_refused_for_its_reason_with_a_signed_complaint",
    ),
    Mutant(
        name="adverts-unsigned",
        trap="P28",
        what="The signature under an advert is not looked at",
        path="common/secagg/steps.py",
        old="        sender: decode_advert(_body(message, Kind.ADVERT, session, sender))\n",
        new="        sender: decode_advert(parse(message, Kind.ADVERT).body)\n",
        test=f"{SECAGG}/test_deviations.py::"
        "test_a_deviation_is_refused_for_its_reason_with_a_signed_complaint",
    ),
    Mutant(
        name="own-advert-not-looked-for",
        trap="P28",
        what="A site deals though its own advert is not among those shown",
        path="common/secagg/steps.py",
        old="    if state.advert not in messages:\n",
        new="    if False:\n",
        test=f"{SECAGG}/test_deviations.py::"
        "test_a_deviation_is_refused_for_its_reason_with_a_signed_complaint",
    ),
    Mutant(
        name="split-view",
        trap="P28",
        what="Letters of a dealer that saw other adverts are taken",
        path="common/secagg/steps.py",
        old="    if letter.view != state.view:\n",
        new="    if False:\n",
        test=f"{SECAGG}/test_deviations.py::"
        "test_a_deviation_is_refused_for_its_reason_with_a_signed_complaint",
    ),
    Mutant(
        name="journal-not-asked",
        trap="P29",
        what="What the journal says is not listened to",
        path="common/secagg/participant.py",
        old="        if not self._journal.record(mark):\n",
        new=("        self._journal.record(mark)\n        if False:\n"),
        test=f"{SECAGG}/test_participant.py::test_a_phase_is_not_answered_again_after_a_restart",
    ),
    Mutant(
        name="state-before-its-mark",
        trap="P29",
        what="A site goes on to the next state before its mark is on the disk",
        path="common/secagg/participant.py",
        old="            following, reply = step(state)\n",
        new=("            following, reply = step(state)\n            self._state = following\n"),
        test=f"{SECAGG}/test_traps.py::test_a_disk_that_takes_no_mark_leaves_no_state_to_go_on_with",
    ),
    Mutant(
        name="older-attempts-go-on",
        trap="P29",
        what="Marks of another attempt are no reason to refuse",
        path="common/secagg/journal.py",
        old="        if last is None:\n",
        new="        if last is None or self.attempt != last.attempt:\n",
        test=f"{SECAGG}/test_participant.py::"
        "test_an_attempt_is_not_answered_any_more_once_a_later_one_has_begun",
    ),
    Mutant(
        name="replayed-from-another-session",
        trap="P29",
        what="A message of another attempt or round is taken",
        path="common/secagg/wire.py",
        old="    if envelope.session != session.digest:\n",
        new="    if False:\n",
        test=f"{SECAGG}/test_deviations.py::"
        "test_a_deviation_is_refused_for_its_reason_with_a_signed_complaint",
    ),
    Mutant(
        name="second-vector-added",
        trap="P29",
        what="A site's second vector is added to its first",
        path="common/secagg/coordinator.py",
        old="        if number in self._answers:\n",
        new="        if False:\n",
        test=f"{SECAGG}/test_deviations.py::"
        "test_a_deviation_is_refused_for_its_reason_with_a_signed_complaint",
    ),
    Mutant(
        name="late-vector-added",
        trap="P29",
        what="A vector of a site that never dealt is added",
        path="common/secagg/coordinator.py",
        old='self._phase == "sum" or number not in self._asked or number in self._out',
        new='self._phase == "sum" or number in self._out',
        test=f"{SECAGG}/test_traps.py::test_a_vector_of_a_site_that_never_dealt_is_not_added",
    ),
    Mutant(
        name="session-left-out-of-keys",
        trap="P30",
        what="Keys are derived without the session",
        path="common/secagg/derive.py",
        old="derived_key(secret, salt=session.digest,",
        new="derived_key(secret, salt=bytes(32),",
        test=f"{SECAGG}/test_parts.py::test_keys_differ_by_session_view_pair_direction_and_use",
    ),
    Mutant(
        name="one-key-for-every-pair",
        trap="P30",
        what="The key of a mask does not depend on the pair",
        path="common/secagg/derive.py",
        old='info=label(use) + view + struct.pack("<HH", one, other))',
        new="info=label(use) + view)",
        test=f"{SECAGG}/test_parts.py::test_keys_differ_by_session_view_pair_direction_and_use",
    ),
    Mutant(
        name="coins-of-no-chance",
        trap="P30",
        what="Secrets come from a source that is not the operating system's",
        path="common/secagg/participant.py",
        old=("        journal: Journal,\n        coins: shamir.Coins = os.urandom,\n"),
        new=("        journal: Journal,\n        coins: shamir.Coins = bytes,\n"),
        test=f"{SECAGG}/test_traps.py::test_who_is_given_no_coins_takes_them_from_the_operating_system",
    ),
    Mutant(
        name="pair-sign-not-flipped",
        trap="P31",
        what="Both sites of a pair add their mask",
        path="common/secagg/masks.py",
        old="    return 1 if me < peer else -1\n",
        new="    return 1\n",
        test=f"{SECAGG}/test_reference.py::test_the_reference_agrees_on_fresh_transcripts",
    ),
    Mutant(
        name="masked-for-who-never-dealt",
        trap="P31",
        what="A site masks for peers that advertised and never dealt",
        path="common/secagg/steps.py",
        old="        if peer in shares:  # who never dealt gets no mask: nobody could take it off again\n",
        new="        if True:\n",
        test=f"{SECAGG}/test_sums.py::test_a_site_lost_between_setup_and_sharing_costs_the_others_nothing",
    ),
    Mutant(
        name="own-bound-unchecked",
        trap="P31",
        what="A vector beyond its bound leaves",
        path="common/secagg/masks.py",
        old="    if int(values.max()) > bound or int(values.min()) < -bound:\n",
        new="    if False:\n",
        test=f"{SECAGG}/test_participant.py::test_a_vector_of_another_type_shape_or_size_never_leaves",
    ),
    Mutant(
        name="ring-that-can-wrap",
        trap="P31",
        what="A session whose sum can leave its ring is agreed to",
        path="common/secagg/session.py",
        old="    return bits in WIDTHS and session.n_sites * session.value_bound <= largest_sum(bits)\n",
        new="    return bits in WIDTHS\n",
        test=f"{SECAGG}/test_parts.py::test_a_bound_whose_sum_could_wrap_is_refused",
    ),
    Mutant(
        name="sum-without-its-sign",
        trap="P31",
        what="Elements of the sum are read as if none were negative",
        path="common/secagg/masks.py",
        old='total.view(f"<i{total.itemsize}").astype(np.int64)',
        new="total.astype(np.int64)",
        test=f"{SECAGG}/test_sums.py::test_sums_at_the_bound_do_not_wrap",
    ),
    Mutant(
        name="seed-uncommitted",
        trap="P31",
        what="The coordinator takes off the mask of whatever seed the shares are of",
        path="common/secagg/coordinator.py",
        old="        if seed is None or derive.seed_commitment(self._session, number, seed) != committed:\n",
        new="        if seed is None:\n",
        test=f"{SECAGG}/test_deviations.py::"
        "test_a_deviation_is_refused_for_its_reason_with_a_signed_complaint",
    ),
    Mutant(
        name="reveals-taken-as-they-come",
        trap="P31",
        what="The coordinator takes a revealed share that was never dealt",
        path="common/secagg/coordinator.py",
        old="                if made != committed:\n",
        new="                if False:\n",
        test=f"{SECAGG}/test_deviations.py::"
        "test_a_deviation_is_refused_for_its_reason_with_a_signed_complaint",
    ),
    Mutant(
        name="letters-taken-as-they-open",
        trap="P31",
        what="A site holds shares that their dealer never committed to",
        path="common/secagg/steps.py",
        old='        if hmac.compare_digest(b"".join(made), letter.mask_commitment + letter.self_commitment):\n',
        new="        if True:\n",
        test=f"{SECAGG}/test_deviations.py::"
        "test_a_deviation_is_refused_for_its_reason_with_a_signed_complaint",
    ),
    Mutant(
        name="sum-beyond-its-bounds",
        trap="P31",
        what="A sum beyond what its sites' bounds add up to is handed out",
        path="common/secagg/coordinator.py",
        old="        if max(int(values.max()), -int(values.min())) > len(survivors) * session.value_bound:\n",
        new="        if False:\n",
        test=f"{SECAGG}/test_deviations.py::"
        "test_a_deviation_is_refused_for_its_reason_with_a_signed_complaint",
    ),
    Mutant(
        name="complaint-unsigned",
        trap="P32",
        what="A complaint is believed without its accuser's signature",
        path="common/secagg/complaint.py",
        old="    if key is None or not verified(key, _raw(signed.signature), _statement(complaint)):\n",
        new="    if key is None:\n",
        test=f"{SECAGG}/test_parts.py::test_a_complaint_is_read_if_its_accuser_signed_it_and_otherwise_not",
    ),
    Mutant(
        name="shares-in-a-complaint",
        trap="P32",
        what="A complaint of a reveal holds the shares that were revealed",
        path="common/secagg/coordinator.py",
        old='show_evidence=self._phase != "reveal"',
        new="show_evidence=True",
        test=f"{SECAGG}/test_deviations.py::test_no_share_and_no_vector_stands_in_a_complaint_of_a_reveal",
    ),
    Mutant(
        name="word-taken-for-proof",
        trap="P32",
        what="Evidence that the accused did not sign proves something",
        path="common/secagg/complaint.py",
        old="        return key is not None and envelope.signed_by(key)\n",
        new="        return key is not None\n",
        test=f"{SECAGG}/test_deviations.py::"
        "test_a_deviation_is_refused_for_its_reason_with_a_signed_complaint",
    ),
    Mutant(
        name="state-of-another-sum",
        trap="P33",
        what="A site goes on with a state of another sum than it agreed to",
        path="common/secagg/participant.py",
        old=("            refuse_unless_agreed(session, agreement)\n            if"),
        new="            if",
        test=f"{SECAGG}/test_state.py::test_a_state_of_another_sum_than_the_site_agreed_on_is_refused",
    ),
    Mutant(
        name="state-of-another-site",
        trap="P33",
        what="A site goes on with another site's state",
        path="common/secagg/participant.py",
        old="            if session.number_of(site) != me:\n",
        new="            if False:\n",
        test=f"{SECAGG}/test_state.py::test_a_state_of_another_site_is_refused",
    ),
    Mutant(
        name="state-of-other-keys",
        trap="P33",
        what="A state is taken whose secrets are not those of its advert",
        path="common/secagg/state.py",
        old="    if open_message(advert, Kind.ADVERT, session=session, sender=me) != published.encode():\n",
        new="    if False:\n",
        test=f"{SECAGG}/test_state.py::test_fields_that_do_not_hang_together_are_refused",
    ),
    Mutant(
        name="state-damaged",
        trap="P33",
        what="Bytes of a state that were damaged are taken",
        path="common/secagg/state.py",
        old="    if len(data) > MAX_STATE_BYTES or hashlib.sha256(content).digest() != digest:\n",
        new="    if len(data) > MAX_STATE_BYTES:\n",
        test=f"{SECAGG}/test_state.py::test_no_bytes_but_a_state_s_own_are_taken_for_it",
    ),
    Mutant(
        name="ended-and-alive",
        trap="P33",
        what="A site that refused has its earlier state again in the next process",
        path="common/secagg/participant.py",
        old="        state, self._state = self._state, Ended()\n",
        new="        state = self._state\n",
        test=f"{SECAGG}/test_state.py::test_an_ended_state_refuses_every_message",
    ),
    Mutant(
        name="one-share-for-two-attempts",
        trap="P34",
        what="Another attempt at a round adds the noise of the first",
        path="common/privacy/distributed.py",
        old="    values = total.values + discrete_gaussians(mechanism.share_variance, width, source)\n",
        new="    noise = discrete_gaussians(mechanism.share_variance, width, source)\n"
        "    values = total.values + site_sum.__dict__.setdefault('noise', noise)\n",
        test=f"{PRIVACY}/test_distributed.py::test_two_attempts_share_no_noise",
    ),
    Mutant(
        name="n-min-by-the-coordinator",
        trap="P34",
        what="A site believes the coordinator's word on how few sites a sum may have",
        path="common/secagg/session.py",
        old='"length", "value_bound", "n_min")',
        new='"length", "value_bound")',
        test=f"{SECAGG}/test_deviations.py::"
        "test_a_deviation_is_refused_for_its_reason_with_a_signed_complaint",
    ),
    Mutant(
        name="shares-without-masks",
        trap="P34",
        what="Sums of mode distributed are masked only if the study says so",
        path="common/study.py",
        old="        if isinstance(self.privacy, DistributedPrivacy):\n            return True\n",
        new="",
        test="tests/common/test_study.py::test_a_distributed_study_has_secure_sums_whatever_else_it_says",
    ),
    Mutant(
        name="weights-in-a-sum-of-patients",
        trap="P34",
        what="Sites of mode distributed may have weights",
        path="common/study.py",
        old="if federation.sites_per_round is not None or federation.site_weights is not None:",
        new="if federation.sites_per_round is not None:",
        test="tests/common/test_study.py::test_constants_that_no_distributed_study_can_have",
    ),
    Mutant(
        name="delta-of-one-site",
        trap="P35",
        what="Delta is held against one site's patients",
        path="common/privacy_specs.py",
        old="*_delta_problems(spec, spec.n_patients_public * n_sites),",
        new="*_delta_problems(spec, spec.n_patients_public),",
        test="tests/common/test_study.py::test_constants_that_no_distributed_study_can_have",
    ),
    Mutant(
        name="attempts-for-free",
        trap="P35",
        what="Attempts at a sum of counts beyond the first are not priced",
        path="common/privacy/distributed_plan.py",
        old="        steps = n_counts + spec.spare_rounds\n",
        new="        steps = n_counts\n",
        test=f"{PRIVACY}/test_planning_distributed.py::"
        "test_spare_attempts_are_priced_for_sums_of_gradients_and_of_counts",
    ),
    Mutant(
        name="divisor-of-all-sites",
        trap="P35",
        what="The sum of the survivors is divided by what all sites were expected to have",
        path="common/privacy/distributed_plan.py",
        old="expected_patients=spec.expected_patients * n_summed)",
        new="expected_patients=spec.expected_patients * mechanism.n_sites)",
        test=f"{PRIVACY}/test_distributed_plan.py::test_a_mean_stays_a_mean_when_sites_are_lost",
    ),
    Mutant(
        name="size-of-another-model",
        trap="P35",
        what="A study may state a larger model than it has",
        path="common/model_size.py",
        old="    if stated == found:\n",
        new="    if stated >= found:\n",
        test="tests/common/test_model_size.py::test_a_study_that_states_another_number_is_told_the_right_one",
    ),
    Mutant(
        name="all-others-left-out",
        trap="P35",
        what="The figure against all other sites is not among those that are printed",
        path="common/privacy/distributed.py",
        old="for t in range(n_min)),",
        new="for t in range(n_min - 1)),",
        test=f"{PRIVACY}/test_planning_distributed.py::"
        "test_the_more_collude_the_more_it_costs_and_all_others_leave_one_share",
    ),
    Mutant(
        name="colluders-counted-among-all",
        trap="P35",
        what="Masks are taken to withstand as many colluders as if every site were always invited",
        path="common/privacy/planning_distributed.py",
        old="    invited = range(max(3, n_min), n_sites + 1)\n",
        new="    invited = range(n_sites, n_sites + 1)\n",
        test=f"{PRIVACY}/test_planning_distributed.py::"
        "test_colluders_that_are_withstood_cannot_sign_for_two_sets_of_survivors",
    ),
    Mutant(
        name="sums-beside-the-filter",
        trap="P36",
        what="Sums over sites are left out of what studies of a domain add up to",
        path="common/privacy/filter.py",
        old="        return divergence(charge, order)\n    full = _full(charge)\n",
        new="        return 0.0\n    full = _full(charge)\n",
        test=f"{LEDGER}/test_sums.py::test_local_studies_and_sums_add_up_in_one_domain_by_the_filter",
    ),
    Mutant(
        name="conceded-for-free",
        trap="P36",
        what="What sums concede of delta is not held against what the domain kept",
        path="common/privacy/filter.py",
        old="    if conceded_delta(sums) > kept:\n",
        new="    if False:\n",
        test=f"{LEDGER}/test_sums.py::test_what_is_conceded_stays_within_what_the_domain_kept_when_it_opened",
    ),
    Mutant(
        name="kept-by-sums-alone",
        trap="P36",
        what="The price is at all of delta until the first sum comes",
        path="common/privacy/filter.py",
        old="_price(order, delta - kept)) if total",
        new="_price(order, delta - (kept if sums else 0.0))) if total",
        test=f"{LEDGER}/test_sums.py::test_what_is_kept_is_paid_by_every_charge_and_not_by_sums_alone",
    ),
    Mutant(
        name="given-back-by-rdp",
        trap="P36",
        what="A first study that the filter never covered gives back what it has not drawn",
        path="common/ledger/state.py",
        old='grant.approval.decided_by != "rdp_filter"\n',
        new='grant.approval.decided_by == "pld"\n',
        test=f"{LEDGER}/test_sums.py::test_the_smallest_order_decides_for_the_first_study_alone_and_nothing_is_given_back",
    ),
    Mutant(
        name="a-sum-approved-as-local",
        trap="P36",
        what="A mode is approved whose mechanism is another's",
        path="common/ledger/state.py",
        old="    if not all(isinstance(charge, wanted) for charge in body.charges):\n",
        new="    if False:\n",
        test=f"{LEDGER}/test_sums.py::test_a_mode_whose_mechanism_is_another_is_refused",
    ),
    Mutant(
        name="weights-not-compared",
        trap="P37",
        what="A site computes its vector for other weights than the session names",
        path="client/app.py",
        old="    if called.model != session.model_digest:\n",
        new="    if False:\n",
        test=f"{SECURE_ROUNDS}::test_other_weights_than_the_session_names_are_refused_before_anything_is_spent",
    ),
    Mutant(
        name="plain-beside-secure-sums",
        trap="P37",
        what="A plain request is answered in a study with secure sums",
        path="client/app.py",
        old="    if visit.secure:\n        raise Refusal(UNDER_MASKS_ONLY)\n",
        new="",
        test=f"{SECURE}::test_neither_an_update_nor_counts_leave_in_the_clear_where_sums_are_secure",
    ),
    Mutant(
        name="vector-before-its-turn",
        trap="P37",
        what="A vector is computed, and charged, before it is known that one is due",
        path="client/secure.py",
        old="participant.session is None or not participant.may_mask:",
        new="participant.session is None:",
        test=f"{SECURE}::test_no_vector_is_computed_before_or_after_its_turn",
    ),
    Mutant(
        name="twin-beside-a-ledger",
        trap="P37",
        what="A node with a ledger takes itself for a twin of a simulation",
        path="client/app.py",
        old='    if "ledger-folder" in context.node_config:\n        raise RunError("Expected \'without-privacy\'',
        new="    if False:\n        raise RunError(\"Expected 'without-privacy'",
        test=f"{CLIENT}/test_releases.py::test_only_a_node_s_own_configuration_makes_it_a_twin_and_never_beside_a_ledger",
    ),
    Mutant(
        name="one-vector-for-all-attempts",
        trap="P37",
        what="The vector of an attempt that failed is sent again in the next",
        path="client/releases.py",
        old="called.ask(what, attempt=attempt)",
        new="called.ask(what)",
        test=f"{SECURE_ROUNDS}::test_an_attempt_that_fell_apart_is_charged_and_another_draws_anew",
    ),
    Mutant(
        name="vectors-kept",
        trap="P37",
        what="The masked vector of an attempt is kept to be sent again",
        path="client/site_ledger.py",
        old="            if ask.attempt is None:  # else never sent again",
        new="            if True:  # else never sent again",
        test=f"{SECURE}::test_a_vector_is_made_anew_for_each_attempt_bears_its_number_and_is_never_kept",
    ),
    Mutant(
        name="attempt-without-its-number",
        trap="P37",
        what="A release does not say which attempt it was for",
        path="client/site_ledger.py",
        old='        name += "" if ask.attempt is None else f".sum-{ask.attempt}"\n',
        new="",
        test=f"{SECURE}::test_a_vector_is_made_anew_for_each_attempt_bears_its_number_and_is_never_kept",
    ),
    Mutant(
        name="roster-not-compared",
        trap="P37",
        what="The roster in a site's folder is taken for the one that its approver signed for",
        path="client/site_ledger.py",
        old="        if signed != roster_digest(roster):\n",
        new="        if False:\n",
        test=f"{SECURE_ROUNDS}::test_no_approval_without_a_roster_and_no_release_with_another_one",
    ),
    Mutant(
        name="roster-not-asked-for",
        trap="P37",
        what="A release does not look at the roster",
        path="client/releases.py",
        old="            if study.sums_are_secure:\n",
        new="            if False:\n",
        test=f"{SECURE}::test_with_another_roster_than_was_approved_no_gradient_is_computed",
    ),
    Mutant(
        name="own-norm-unchecked",
        trap="P37",
        what="A site masks an update of any length",
        path="client/app.py",
        old="        if not np.linalg.norm(change) <= study.federation.max_update_norm:\n",
        new="        if False:\n",
        test=f"{SECURE}::test_an_update_longer_than_the_study_allows_is_not_masked",
    ),
    Mutant(
        name="answered-in-memory-alone",
        trap="P37",
        what="What a site has answered is not on its disk",
        path="client/secure_folder.py",
        old="            write_whole(self._folder / ANSWERED, text.encode())\n",
        new="",
        test=f"{SECURE}::test_no_phase_is_answered_twice_whichever_process_is_asked",
    ),
    Mutant(
        name="answered-marks-overwritten",
        trap="P37",
        what="The mark of what a site has answered is written over and not compared",
        path="client/secure_folder.py",
        old="            if not mark.after(marks.get(mark.run)):\n",
        new="            if False:\n",
        test=f"{SECURE}::test_no_phase_is_answered_twice_whichever_process_is_asked",
    ),
    Mutant(
        name="instruction-believed",
        trap="P37",
        what="Rounds, pull, folds and seeds are what a message says",
        path="client/app.py",
        old="        _check_instruction(visit)\n",
        new="",
        test=f"{SECURE_HOSTILE}::test_a_site_takes_rounds_and_pull_from_its_study_alone",
    ),
    Mutant(
        name="asked-again-after-a-failure",
        trap="P37",
        what="A site whose vector failed makes another in the same attempt",
        path="client/app.py",
        old='        context.state[key] = ConfigRecord({"held": b""})',
        new="        context.state.get(key)",
        test=f"{SECURE_HOSTILE}::test_a_site_whose_vector_failed_is_lost_to_the_attempt_and_charged_once",
    ),
    Mutant(
        name="attempts-counted-in-memory",
        trap="P38",
        what="The number of an attempt is the round's own count, not the record's",
        path="server/secure.py",
        old="        number = self._record.n_attempts(agreement.run, call.round) + 1\n",
        new="        number = call.attempt\n",
        test=f"{SECURE_ROUNDS}::"
        "test_a_run_goes_on_after_a_crash_in_mid_attempt_with_a_new_attempt_and_the_same_bits",
    ),
    Mutant(
        name="spent-once-vectors-came",
        trap="P38",
        what="An attempt is recorded as spent once its vectors have come",
        path="server/secure.py",
        old='                if phase == "mask":\n'
        "                    self._record.spent(session, dealers=tuple(bodies))\n"
        "                self._phase(what, phase, call, model, bodies, coordinator, attempt)\n",
        new="                self._phase(what, phase, call, model, bodies, coordinator, attempt)\n"
        '                if phase == "mask":\n'
        "                    self._record.spent(session, dealers=tuple(bodies))\n",
        test=f"{SECURE}::"
        "test_a_coordinator_that_dies_with_the_vectors_in_its_hands_had_recorded_them_as_spent",
    ),
    Mutant(
        name="mean-over-the-invited",
        trap="P38",
        what="A sum of gradients is divided by what all sites were expected to have",
        path="server/secure.py",
        old="            mechanism = for_survivors(mechanism_of(self._study, spec, UPDATE), spec, n_summed)\n",
        new="            mechanism = mechanism_of(self._study, spec, UPDATE)\n",
        test=f"{SECURE}::test_the_mean_is_over_the_survivors_as_if_the_lost_had_never_been_invited",
    ),
    Mutant(
        name="weights-of-the-invited",
        trap="P38",
        what="A sum of updates is divided by the weights of all sites",
        path="server/secure.py",
        old="sum(weights[site] for site in total.survivors)",
        new="sum(weights.values())",
        test=f"{SECURE}::test_the_mean_is_over_the_survivors_as_if_the_lost_had_never_been_invited",
    ),
    Mutant(
        name="rate-without-its-schedule",
        trap="P38",
        what="The coordinator's step has the study's rate and not that of the round",
        path="server/secure.py",
        old="            rate = learning_rate_at(self._study.training, call.round, call.rounds)\n",
        new="            rate = self._study.training.learning_rate\n",
        test=f"{SECURE}::test_the_coordinator_steps_against_the_gradient_by_the_rate_of_the_round",
    ),
    Mutant(
        name="up-the-gradient",
        trap="P38",
        what="The coordinator's step has the gradient's sign",
        path="server/secure.py",
        old="            return -rate * gradient",
        new="            return rate * gradient",
        test=f"{SECURE_ROUNDS}::test_with_noise_off_the_weights_are_those_of_pooled_dp_sgd",
    ),
    Mutant(
        name="counts-of-too-few",
        trap="P38",
        what="Counts are read whose noise was sized for more sites",
        path="server/secure.py",
        old="        if len(total.survivors) < mechanism.n_min:\n",
        new="        if False:\n",
        test=f"{SECURE}::test_counts_of_fewer_sites_than_the_noise_was_sized_for_are_not_read",
    ),
    Mutant(
        name="caught-and-invited",
        trap="P38",
        what="A dealer that was caught is invited to every later attempt",
        path="server/secure.py",
        old="        sites = self._trusted(sites, terms)\n",
        new="",
        test=f"{SECURE_HOSTILE}::"
        "test_a_dealer_whose_shares_are_of_no_secret_ends_one_attempt_and_is_not_asked_again",
    ),
    Mutant(
        name="quorum-for-n-min",
        trap="P39",
        what="A sum of shares of noise needs the federation's quorum alone",
        path="common/sums.py",
        old="    if isinstance(study.privacy, DistributedPrivacy):\n        return study.privacy.n_min\n",
        new="",
        test=f"{SECURE}::test_a_sum_of_shares_of_noise_needs_as_many_sites_as_they_were_sized_for_whatever_the_quorum",
    ),
    Mutant(
        name="run-of-both-kinds",
        trap="P39",
        what="Sums of updates and of counts are one run",
        path="common/sums.py",
        old="/{fold}/{what}",
        new="/{fold}",
        test=f"{SECURE}::test_runs_of_another_study_seed_fold_or_kind_have_other_names",
    ),
    Mutant(
        name="run-of-any-study",
        trap="P39",
        what="Sums of two studies are one run",
        path="common/sums.py",
        old="{study.digest()[:32]}/{seed}",
        new="{seed}",
        test=f"{SECURE}::test_runs_of_another_study_seed_fold_or_kind_have_other_names",
    ),
    Mutant(
        name="not-turned",
        trap="P39",
        what="Updates are rounded as they are, without the rotation",
        path="common/compression.py",
        old='    spectrum = np.fft.rfft(vector, norm="ortho")\n',
        new='    return vector\n    spectrum = np.fft.rfft(vector, norm="ortho")\n',
        test="tests/common/test_compression.py::test_the_sum_of_encodings_decodes_to_the_sum_of_updates",
    ),
    Mutant(
        name="coins-in-common",
        trap="P39",
        what="All sites round by the same coins",
        path="common/compression.py",
        old='"rounding", site, self.round',
        new='"rounding", self.round',
        test="tests/common/test_compression.py::test_an_encoding_follows_from_its_arguments_and_the_codec_alone",
    ),
    Mutant(
        name="all-of-the-ring-for-each",
        trap="P39",
        what="Each site's integers may fill all of the ring",
        path="common/compression.py",
        old="        return largest_sum(self.ring_bits) // self.n_sites\n\n"
        "    @property\n    def step(self) -> float:\n"
        '        """Returns what one unit of the integers stands for."""\n        return _REACH',
        new="        return largest_sum(self.ring_bits)\n\n"
        "    @property\n    def step(self) -> float:\n"
        '        """Returns what one unit of the integers stands for."""\n        return _REACH',
        test="tests/common/test_compression.py::test_for_every_cohort_the_ring_holds_the_largest_sum_of_all",
    ),
    Mutant(
        name="consent-to-other-survivors",
        trap="P40",
        what="A record's sum is believed with signatures under another set of survivors",
        path="common/federation_ledger/rules.py",
        old="        if len(consents) > 1 or consent.survivors != survivors:\n",
        new="        if len(consents) > 1:\n",
        test="tests/common/test_federation_ledger.py::"
        "test_a_sum_that_its_survivors_did_not_sign_for_is_refused",
    ),
    Mutant(
        name="attempt-recorded-twice",
        trap="P40",
        what="A record may open one attempt twice",
        path="common/federation_ledger/rules.py",
        old="session.attempt <= last.session.attempt:",
        new="session.attempt < last.session.attempt:",
        test="tests/common/test_federation_ledger.py::"
        "test_sessions_and_an_order_that_no_site_would_follow_are_refused",
    ),
    Mutant(
        name="models-not-asked-for",
        trap="P41",
        what="A policy lists kinds of model, and nobody asks which kind an approval is for",
        path="common/ledger/terms.py",
        old="self.models is None or (bool(kinds) and set(kinds) <= set(self.models))",
        new="True",
        test=f"{CLIENT}/test_policy.py::test_a_model_of_a_kind_that_is_not_on_the_list_is_refused",
    ),
    Mutant(
        name="branches-not-asked-for",
        trap="P41",
        what="Of a fusion only the word itself is asked for",
        path="common/ledger/terms.py",
        old="set(kinds) <= set(self.models))",
        new="kinds[0] in self.models)",
        test=f"{CLIENT}/test_policy.py::test_a_model_of_a_kind_that_is_not_on_the_list_is_refused",
    ),
    Mutant(
        name="recordings-of-others",
        trap="P41",
        what="A hospital computes features of whatever lies in the folder",
        path="client/features.py",
        old="    _check_site(hospital, corpus)\n",
        new="",
        test=f"{CLIENT}/test_features.py::test_recordings_of_another_site_are_refused_before_one_is_decoded",
    ),
    Mutant(
        name="sealed-without-an-end",
        trap="P41",
        what="Chunks of sealed features do not say which is the last",
        path="client/features_at_rest.py",
        old="json.dumps([site, study, name, index, is_last])",
        new="json.dumps([site, study, name, index])",
        test=f"{CLIENT}/test_features.py::test_whatever_was_done_to_sealed_features_the_answer_is_one_and_the_same",
    ),
    Mutant(
        name="unlabelled-signature",
        trap="P42",
        what="Whatever a key ever signed can be sent as a message: its signature is not asked for the label.",
        path="common/envelope.py",
        old="return verified(public_key, envelope.signature, LABEL + envelope.header)",
        new='return any(verified(public_key, envelope.signature, label + envelope.header) for label in (LABEL, b""))',
        test="tests/common/test_envelope.py::test_it_is_refused_with_its_word",
    ),
    Mutant(
        name="replay-of-the-last",
        trap="P42",
        what="A site answers the newest message twice: two answers, drawn anew, to one question.",
        path="common/envelope.py",
        old="if sequence <= marks.get(sender_key, -1):",
        new="if sequence < marks.get(sender_key, -1):",
        test="tests/common/test_envelope.py::test_of_ten_thousand_altered_or_repeated_ones_none_is_accepted",
    ),
    Mutant(
        name="marks-begin-anew",
        trap="P42",
        what="A damaged file of what came before is an empty one: every message of the last hours may be sent again.",
        path="common/envelope.py",
        old='if hashlib.sha256(data.removesuffix(b"\\n")).hexdigest().encode() != digest:',
        new="if not data:",
        test="tests/common/test_envelope.py::test_a_damaged_file_is_an_error_and_never_a_new_beginning",
    ),
    Mutant(
        name="answer-to-any-question",
        trap="P42",
        what="A reply's run and round are not compared: what a site signed says another round than it was added to.",
        path="server/sealed.py",
        old="if (header.run, header.round) != (self._run_digest, question.round):",
        new="if False:",
        test="tests/server/test_sealed.py::test_what_was_altered_or_repeated_is_refused_and_the_round_goes_on",
    ),
    Mutant(
        name="revoked-but-heard",
        trap="P42",
        what="Who was revoked between question and reply is still added.",
        path="server/sealed.py",
        old="if site not in trusted:",
        new="if site not in trusted and not question.site:",
        test="tests/server/test_sealed.py::test_who_is_revoked_between_question_and_reply_is_not_heard",
    ),
    Mutant(
        name="approved-for-ever",
        trap="P42",
        what="An approval that was read once holds as long as the process: a closed study is trained on.",
        path="client/hospital.py",
        old="return _approval(hospital.ledger, hospital.study_file(digest), digest, state)",
        new="return _approval(hospital.ledger, hospital.study_file(digest), digest, bool(state))",
        test="tests/client/test_hospital.py::test_an_approval_that_ends_between_two_messages_is_seen",
    ),
    Mutant(
        name="any-approved-text",
        trap="P42",
        what="Any approved study may lie in the folder of another: what is trained is not what was signed for.",
        path="client/hospital.py",
        old="if study.digest() != digest:",
        new="if False:",
        test="tests/client/test_hospital.py::test_an_approved_study_in_the_place_of_another_is_refused",
    ),
    Mutant(
        name="request-names-itself",
        trap="P42",
        what="A certificate may sign others: a site issues itself the coordinator's name.",
        path="common/pki.py",
        old="x509.BasicConstraints(ca=False, path_length=None)",
        new="x509.BasicConstraints(ca=True, path_length=None)",
        test="tests/common/test_pki.py::test_a_request_chooses_neither_name_nor_role_nor_rights",
    ),
    Mutant(
        name="body-of-many-forms",
        trap="P42",
        what="A body may be written in many ways: two that say the same have different digests.",
        path="common/records.py",
        old="if canonical != text:",
        new="if False:",
        test="tests/common/test_records.py::test_other_bytes_are_refused",
    ),
    Mutant(
        name="counts-of-one-table",
        trap="P43",
        what="Noise on evaluation counts is sized for one table, and a recording is in several",
        path="common/privacy_specs.py",
        old="    squared = (n_recordings * COUNT_CELLS) ** 2 * n_tables\n",
        new="    squared = (n_recordings * COUNT_CELLS) ** 2\n",
        test="tests/common/test_groups.py::test_noise_on_every_table_is_that_of_the_whole_release",
    ),
    Mutant(
        name="tables-beyond-the-promise",
        trap="P43",
        what="Pairs of attributes are left out of the number of tables that a recording can be in",
        path="common/groups.py",
        old="(n * (n - 1) // 2 if crossed else 0)",
        new="0",
        test="tests/common/test_groups.py::test_a_recording_is_in_one_table_of_each_attribute_at_most_and_in_no_more_than_is_promised",
    ),
    Mutant(
        name="tables-in-a-private-sum-of-one",
        trap="P43",
        what="In mode `distributed` the clipping norm of counts stays that of one table",
        path="common/privacy/distributed_plan.py",
        old="    norm = counts_norm(spec.counts_utterances, tables.per_recording)\n",
        new="    norm = counts_norm(spec.counts_utterances, 1)\n",
        test="tests/common/test_groups.py::test_in_a_distributed_sum_a_recording_is_a_whole_number_of_grid_steps",
    ),
    Mutant(
        name="noise-taken-for-groups",
        trap="P43",
        what="Intervals of released counts leave their noise out",
        path="common/fairness.py",
        old="values - noise * np.sqrt(n_cells) *",
        new="values - 0.0 * np.sqrt(n_cells) *",
        test="tests/common/test_fairness.py::test_intervals_cover_the_truth_with_its_noise_and_would_not_if_they_left_it_out",
    ),
    Mutant(
        name="suppressed-by-luck",
        trap="P43",
        what="A group is shown where its noised size happens to be large enough",
        path="common/fairness.py",
        old="        low_sizes=sizes - ONE_SIDED * noise * n,\n",
        new="        low_sizes=sizes,\n",
        test="tests/common/test_fairness.py::test_groups_are_suppressed_by_their_noised_size",
    ),
    Mutant(
        name="weight-above-the-norm",
        trap="P43",
        what="A group's weight multiplies a clipped gradient with more than 1",
        path="common/privacy/clip.py",
        old="            or not ((gradients.scales >= 0) & (gradients.scales <= 1)).all()\n",
        new="            or not (gradients.scales >= 0).all()\n",
        test="tests/common/test_group_weights.py::test_a_scale_above_one_is_refused",
    ),
    Mutant(
        name="steered-by-the-withheld",
        trap="P43",
        what="Weights of groups are moved by the speakers that the model is judged on",
        path="client/app.py",
        old="if group_weights.steers(self.study, self.round) else self.scored",
        new="if False else self.scored",
        test="tests/common/test_group_weights.py::test_in_a_federation_weights_are_steered_by_who_is_trained_on_and_the_withheld_are_counted_once",
    ),
    Mutant(
        name="sites-told-different-weights",
        trap="P43",
        what="The digest that sites of one sum compare does not cover the weights of groups",
        path="server/exchange.py",
        old="        return group_weights.bound_to(model, self.config.get(group_weights.TOLD))\n",
        new="        return model\n",
        test="tests/common/test_group_weights.py::test_sites_of_one_sum_were_told_the_same_weights",
    ),
    Mutant(
        name="head-that-leaves",
        trap="P50",
        what="A head that is a site's own leaves with the update",
        path="client/personalise.py",
        old="    return {name: sent[name] if is_head(name) else array for name, array in trained.items()}\n",
        new="    return dict(trained)\n",
        test="tests/simulations/test_personalisation.py::test_a_head_that_stays_here_goes_back_as_it_came",
    ),
    Mutant(
        name="counts-of-a-noiseless-model",
        trap="P50",
        what="Paid counts are of a model that was trained without noise",
        path="client/app.py",
        old="    if spec is None or (visit.private and not keeps_head(spec)):\n",
        new="    if spec is None:\n",
        test="tests/simulations/test_personalisation.py::test_in_a_private_mode_counts_that_leave_are_not_of_a_model_trained_without_noise",
    ),
    Mutant(
        name="control-that-never-counted",
        trap="P50",
        what="A site goes on from its last control, whether its answer was used or not",
        path="client/app.py",
        old="    return state, state.read(visit.counted)\n",
        new="    return state, state.read(visit.round - 1)\n",
        test="tests/simulations/test_scaffold.py::test_a_site_whose_answer_was_lost_goes_on_from_the_control_that_counted",
    ),
    Mutant(
        name="control-of-those-who-were-away",
        trap="P50",
        what="The shared control moves as if all sites had taken part",
        path="server/strategies/scaffold.py",
        old="control + np.float32(share) * change",
        new="control + change",
        test="tests/simulations/test_scaffold.py::test_with_public_weights_and_some_of_the_sites_it_stays_the_weighted_mean",
    ),
    Mutant(
        name="own-model-outlives-a-withdrawal",
        trap="P51",
        what="A site's own model goes on, after a withdrawal, from one that heard the patient",
        path="client/app.py",
        old="    state = _kept(context, visit, mark)\n",
        new='    state = _kept(context, visit, "")\n',
        test="tests/client/test_personal.py::test_after_a_withdrawal_a_sites_own_model_is_that_of_a_site_that_never_had_the_patient",
    ),
    Mutant(
        name="own-model-hears-the-withdrawn",
        trap="P51",
        what="A site's own model is trained on who withdrew",
        path="client/app.py",
        old="train_own(visit.model, _without(data, gone), visit.personal",
        new="train_own(visit.model, data, visit.personal",
        test="tests/client/test_personal.py::test_after_a_withdrawal_a_sites_own_model_is_that_of_a_site_that_never_had_the_patient",
    ),
    Mutant(
        name="state-left-behind",
        trap="P51",
        what="What was kept of who withdrew stays on the disk",
        path="client/personal.py",
        old="            if place != self._place and (",
        new="            if False and (",
        test="tests/client/test_personal.py::test_after_a_withdrawal_a_sites_own_model_is_that_of_a_site_that_never_had_the_patient",
    ),
    Mutant(
        name="withdrawn-while-training",
        trap="P51",
        what="Somebody withdraws while a model is trained, and it is kept",
        path="client/app.py",
        old="    if _keeps_ledger(context):\n        _own(context, visit)\n",
        new="    pass\n",
        test="tests/client/test_personal.py::test_a_withdrawal_while_a_model_is_trained_takes_what_was_kept_of_it",
    ),
    Mutant(
        name="kept-when-sent-again",
        trap="P51",
        what="Bytes of before a withdrawal are sent again, and kept again as if they were of after it",
        path="client/app.py",
        old='        return *_unpacked(opened.data, sent), ""\n',
        new='        keep(_unpacked(opened.data, sent)[1])\n        return *_unpacked(opened.data, sent), ""\n',
        test="tests/client/test_personal.py::test_what_is_sent_again_after_a_withdrawal_is_not_kept_again",
    ),
    Mutant(
        name="control-of-the-withdrawn",
        trap="P51",
        what="A control of mode `none` outlives a withdrawal, as one of released numbers may",
        path="client/app.py",
        old="    if visit.private:\n        state = _kept(context, visit, RELEASED)\n",
        new="    if True:\n        state = _kept(context, visit, RELEASED)\n",
        test="tests/client/test_personal.py::test_a_control_without_noise_begins_anew_after_a_withdrawal",
    ),
    Mutant(
        name="state-in-the-clear",
        trap="P51",
        what="A hospital that seals its features leaves what it trains of its own in the clear",
        path="client/hospital.py",
        old='(key := hospital.settings.features_key) is None else {"state-key": key}',
        new="(key := hospital.settings.features_key) is None else {}",
        test="tests/client/test_hospital.py::test_a_hospital_that_seals_its_features_seals_what_it_trains_of_its_own",
    ),
    Mutant(
        name="last-round-told-to-one",
        trap="P52",
        what="The digest that sites of one sum compare does not cover the rounds that counted",
        path="common/counted.py",
        old='    return hashlib.sha256(f"sottovoce/counted/1\\n{model}\\n{text}".encode()).hexdigest()\n',
        new='    return model if hashlib else ""\n',
        test="tests/simulations/test_scaffold.py::test_under_masks_a_site_that_is_told_of_another_last_round_than_all_were_refuses",
    ),
    Mutant(
        name="own-last-round-not-compared",
        trap="P52",
        what="What a site is told of its own last round is not compared with what all were told",
        path="client/app.py",
        old="visit.control is not None and not _agreed(visit, agreement)",
        new="visit.control is not None and not agreement",
        test="tests/simulations/test_scaffold.py::test_under_masks_a_site_that_is_told_of_another_last_round_than_all_were_refuses",
    ),
    Mutant(
        name="another-model-in-one-round",
        trap="P52",
        what="A round is asked again for another model, and two sums are compared",
        path="common/secagg/journal.py",
        old="        return self._place() > last._place() and not (self.round == last.round and is_other)\n",
        new="        return self._place() > last._place()\n",
        test="tests/common/secagg/test_parts.py::test_all_attempts_at_a_round_are_of_one_model",
    ),
    Mutant(
        name="groups-behind-a-cut",
        trap="P53",
        what="The list of groups that a hospital signs for is cut: some are approved that nobody saw",
        path="client/site_ledger.py",
        old="enumerate(parts, 1)}",
        new="enumerate(parts[:1], 1)}",
        test="tests/common/test_groups.py::test_an_approver_signs_for_every_group_whole",
    ),
    Mutant(
        name="enrolment-not-committed-to",
        trap="P53",
        what="The ledger's manifest leaves out what speakers are enrolled by",
        path="client/releases.py",
        old="[data.keys, data.patients, data.enrolled]",
        new="[data.keys, data.patients]",
        test="tests/client/test_releases.py::test_the_ledger_shows_that_what_enrols_was_exchanged_between_two_rounds",
    ),
    Mutant(
        name="enrolment-by-name-alone",
        trap="P53",
        what="What speakers are enrolled by is committed to by its names, whatever is in it",
        path="common/dataset.py",
        old='            total.update(f"{name!r} {values.shape}\\n".encode() + values.tobytes())\n',
        new='            total.update(f"{name!r} {values.shape}\\n".encode())\n',
        test="tests/common/test_dataset.py::test_a_site_commits_to_what_enrols_by_its_content_and_to_nothing_else_by_it",
    ),
    Mutant(
        name="calibration-for-nothing",
        trap="P54",
        what="The two tables that a temperature and sets follow from are not in the sensitivity of the counts",
        path="common/groups.py",
        old=" + (2 if self.confidence_bins else 0)",
        new="",
        test="tests/common/test_calibration_counts.py::test_no_patient_moves_the_release_by_more_than_its_sensitivity_and_some_reach_it",
    ),
    Mutant(
        name="counts-charged-once",
        trap="P54",
        what="Counts of every evaluation are charged as one release",
        path="common/privacy/plan.py",
        old="            steps=n_counts,\n",
        new="            steps=1,\n",
        test="tests/common/test_groups.py::test_the_charge_is_the_same_multiplier_whatever_tables_there_are",
    ),
    Mutant(
        name="rows-of-patients-as-public",
        trap="P54",
        what="A private study adds rows of a file to its own, which no event pays for",
        path="common/generative_specs.py",
        old='    if not isinstance(study.privacy, NoPrivacy):\n        yield (\n            "training.synthetic',
        new='    if False:\n        yield (\n            "training.synthetic',
        test="tests/simulations/test_private_generator.py::test_public_rows_are_for_mode_none_alone",
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
