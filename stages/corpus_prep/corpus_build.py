"""The steps from sources to the documents part, in order; each leaves what the next one needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from stages.corpus_prep.corpus_writer import WriteTask, Written, collect, write_questions, write_shard
from stages.corpus_prep.decontamination import ContaminationIndex, LeakRules
from stages.corpus_prep.entries import of_split
from stages.corpus_prep.filtering import Filters
from stages.corpus_prep.findings import show_duplicates
from stages.corpus_prep.funnel import Funnel
from stages.corpus_prep.gathering import Gathered, Gatherer
from stages.corpus_prep.inputs import earlier_folders
from stages.corpus_prep.own_questions import read_own_questions
from stages.corpus_prep.repeat_passes import RepeatRules
from stages.corpus_prep.repeats import Cut, cut_repeats
from stages.corpus_prep.screening.screen_documents import Screening
from stages.corpus_prep.screening.screen_models import make_models
from stages.corpus_prep.screening.screen_rules import limits_of
from stages.corpus_prep.selection import Choice, Selection, Shards, select
from stages.corpus_prep.spec import CorpusPrepConfig
from stages.corpus_prep.survey import (
    LEAKS_NAME,
    LeakTask,
    Survey,
    SurveyTask,
    find_leaks,
    read_leaks,
    survey_shard,
    write_held_out,
)
from stages.corpus_prep.text_repair import without_surrogates
from stages.corpus_prep.training_records import make_questions, write_benchmark
from stages.runtime.errors import UserError
from stages.runtime.session import StageSession
from stages.runtime.shard_map import ShardMap

HIGHER_LIMIT = "--set corpus_prep.max_megabytes=NUMBER allows more"


class CorpusBuild:
    """Call the steps in their order: gather, select, survey, write_benchmark, write_documents."""

    gathered: Gathered
    _cut: Cut
    found: Survey
    """What conversations and questions need of the documents that stay."""

    def __init__(
        self,
        config: CorpusPrepConfig,
        outputs: Mapping[str, Path],
        session: StageSession,
        shards: ShardMap,
        funnel: Funnel,
    ) -> None:
        self.config, self.outputs, self.session = config, outputs, session
        self.shards, self.funnel = shards, funnel
        self.tables = session.work_dir / "tables"
        self.tables.mkdir(parents=True, exist_ok=True)
        self.own_questions = read_own_questions(config, session, funnel)
        self.filters = Filters(config.filters, config.thresholds, limits_of(config))
        screening = Screening(self.filters, mask=config.mask, simplify_chinese=config.simplify_chinese)
        models = make_models(config, screening.clean, self.tables / "models")
        self.screening = replace(screening, models=models)
        self._gatherer = Gatherer(config, shards, funnel, session, self.screening)
        self._decided: list[tuple[Path, Path]] = []
        self._leaks: list[Path] = []
        self._asked: list[str] = []

    def gather(self) -> None:
        """Read, repair and measure every document. Raises UserError for sources that cannot be read."""
        self.gathered = self._gatherer.gather()
        if self.gathered.repairs:
            repairs = sorted(self.gathered.repairs.items())
            self.session.log(f"documents repaired: {', '.join(f'{name} {n:,}' for name, n in repairs)}")

    def select(self) -> None:
        """Decide which documents stay. Raises UserError where none does."""
        selection = self._select()
        if not selection.keeps_any:
            self._gatherer.add_documents_of_records()
            selection = self._select()
        self._cut.count(self.funnel)
        crowded_out = ", ".join([*self.gathered.crowded_out, *selection.crowded_out])
        if not selection.keeps_any:
            hint = self._gatherer.why_nothing(selection.bad)
            if crowded_out:
                hint = f"{crowded_out}: one document is over the limit; {HIGHER_LIMIT}"
            raise UserError("corpus_prep found no document that it could keep", hint=hint)
        if crowded_out:
            self.session.warn(
                f"nothing of {crowded_out} fits into its share of the size limit; {HIGHER_LIMIT}"
            )
        self._cut.show(self.session)
        show_duplicates(self.session, selection, self.config.near_duplicate_similarity)
        decisions = selection.write(self.tables / "decisions", self._cut.tables.counts)
        self._decided = list(zip(self._cut.tables.texts, decisions, strict=True))

    def _select(self) -> Selection:
        config, gathered = self.config, self.gathered
        limit = int(config.max_megabytes * 1e6)
        choice = Choice(
            # The harvest has shared the limit out already; it must not be cut again for a few bytes.
            max_bytes=limit if config.sources else 2 * limit,
            validation_fraction=config.validation_fraction,
            filters=self.filters,
            languages=config.languages,
            similarity=config.near_duplicate_similarity,
            earlier=earlier_folders(config.earlier_corpora),
            switches=gathered.switches,
            mixture=gathered.mixture,
        )
        rules = RepeatRules(
            config.repeated_paragraph_documents,
            config.repeated_line_documents,
            config.repeated_min_characters,
            config.repeated_run_words,
        )
        tables = Shards(gathered.texts, gathered.measures, gathered.counts)
        self._cut = cut_repeats(self.shards, tables, rules, self.screening, self.tables)
        return select(self._cut.tables, choice, self.tables)

    def survey(self) -> None:
        """Collect titles, first sentences and passages, and which training documents give them away."""
        self.found = Survey()
        for shard in self.shards.run("survey", survey_shard, [SurveyTask(*pair) for pair in self._decided]):
            self.found.merge(shard)
        held_out = self.tables / "held_out.json"
        write_held_out(of_split(self.found.book.entries(), "validation"), held_out)
        leaky = self.shards.run("leaks", find_leaks, [LeakTask(*pair, held_out) for pair in self._decided])
        self._leaks = [shard.folder / LEAKS_NAME for shard in leaky]

    def write_benchmark(self) -> Counter[str]:
        """Ask questions on held-out documents; write them and the user's. Returns questions per task."""
        leaks = {doc_id: items for path in self._leaks for doc_id, items in read_leaks(path).items()}
        questions = make_questions(self.found, leaks, self.config)
        scored = {source: own.sample for source, own in self.own_questions.items()}
        tasks = write_benchmark(questions, scored, self.outputs["benchmark"])
        if not tasks:
            self.session.warn("no benchmark question could be made: too few held-out documents")
        self._asked = [question.doc_id for question in questions]
        return tasks

    def write_documents(self) -> Written:
        """Write what stays, without what gives a question away; everything else is a reject."""
        config, gathered = self.config, self.gathered
        questions = self.tables / "questions.json"
        write_questions(self._own_items(), self._asked, questions)
        orders = [
            WriteTask(
                texts,
                measures,
                decision,
                leaks,
                questions,
                self.filters,
                tuple(sorted(gathered.switches.items())),
                config.languages,
                config.contamination_run_words,
                config.contamination_run_characters,
            )
            for (texts, decision), measures, leaks in zip(
                self._decided, self._cut.tables.measures, self._leaks, strict=True
            )
        ]
        written = collect(self.shards.run("write", write_shard, orders), self.outputs, self.funnel)
        megabytes = sum(written.source_bytes.values()) / 1e6
        self.session.log(f"kept {sum(written.sources.values()):,} documents, {megabytes:.1f} MB")
        return written

    def own_index(self) -> ContaminationIndex:
        """The user's own questions, which no text and no record may hold."""
        rules = LeakRules(self.config.contamination_run_words, self.config.contamination_run_characters)
        return ContaminationIndex(self._own_items(), rules)

    def _own_items(self) -> list[tuple[str, str]]:
        """(name, text) of all of the user's own questions, also of those that are not scored."""
        named = [
            (f"{source} {key[:8]}", without_surrogates(text))
            for source, own in self.own_questions.items()
            for key, text in own.texts()
        ]
        # As documents have them: a question with a telephone number stands masked in the page it is from.
        asked = self.screening.clean(pa.array([text for _, text in named], pa.large_string())).to_pylist()
        return [(name, text) for (name, _), text in zip(named, asked, strict=True)]
