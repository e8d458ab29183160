"""What every runner promises, asked of the SSH runner: the very tests of the process runner, on a node behind a gate."""

from __future__ import annotations

import pytest
from integration.ssh_bench import bench, opened
from integration.test_process_runner import (
    test_a_grandchild_that_hides_ends_with_its_run,
    test_a_job_ends_with_its_own_exit_code_and_all_of_its_output,
    test_a_job_killed_by_a_signal_says_which,
    test_a_job_may_save_its_work_when_it_is_stopped,
    test_a_job_starts_clean,
    test_a_job_that_ignores_term_is_killed_after_the_grace,
    test_a_missing_program_exits_127_and_tells_the_buyer,
    test_a_missing_script_and_a_missing_interpreter_exit_127,
    test_a_removed_run_is_forgotten_and_its_folder_is_left,
    test_a_script_that_is_not_executable_exits_126,
    test_a_started_job_is_running_and_says_since_when,
    test_every_process_of_the_tree_hears_term,
    test_memory_is_limited_for_a_job_without_cards,
    test_nothing_starts_under_a_lease_that_is_over,
    test_starting_a_run_again_leaves_it_alone,
    test_stopping_what_is_gone_or_unknown_is_no_error,
    test_the_deadline_stops_a_job,
    test_too_much_output_is_cut_and_ends_the_job,
    test_too_much_output_of_a_short_job_is_cut_as_well,
    test_words_reach_the_program_as_they_are,
)
from integration.test_process_use import (
    test_an_extension_is_an_end_of_its_own,
    test_extending_what_is_gone_is_no_error,
    test_nothing_is_told_of_a_run_that_is_over_or_unknown,
    test_the_use_of_a_run_counts_its_children_and_its_memory,
)

__all__ = [
    "bench",
    "opened",
    "test_a_grandchild_that_hides_ends_with_its_run",
    "test_a_job_ends_with_its_own_exit_code_and_all_of_its_output",
    "test_a_job_killed_by_a_signal_says_which",
    "test_a_job_may_save_its_work_when_it_is_stopped",
    "test_a_job_starts_clean",
    "test_a_job_that_ignores_term_is_killed_after_the_grace",
    "test_a_missing_program_exits_127_and_tells_the_buyer",
    "test_a_missing_script_and_a_missing_interpreter_exit_127",
    "test_a_removed_run_is_forgotten_and_its_folder_is_left",
    "test_a_script_that_is_not_executable_exits_126",
    "test_a_started_job_is_running_and_says_since_when",
    "test_an_extension_is_an_end_of_its_own",
    "test_every_process_of_the_tree_hears_term",
    "test_extending_what_is_gone_is_no_error",
    "test_memory_is_limited_for_a_job_without_cards",
    "test_nothing_is_told_of_a_run_that_is_over_or_unknown",
    "test_nothing_starts_under_a_lease_that_is_over",
    "test_starting_a_run_again_leaves_it_alone",
    "test_stopping_what_is_gone_or_unknown_is_no_error",
    "test_the_deadline_stops_a_job",
    "test_the_use_of_a_run_counts_its_children_and_its_memory",
    "test_too_much_output_is_cut_and_ends_the_job",
    "test_too_much_output_of_a_short_job_is_cut_as_well",
    "test_words_reach_the_program_as_they_are",
]


pytestmark = pytest.mark.asyncio(loop_scope="module")
