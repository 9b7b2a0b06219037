"""The questions on a terminal: one after the other, a wrong answer is asked again, `?` explains and `<` goes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from simpletuner.wizard.answers import take
from simpletuner.wizard.questions import NO, YES, Choice, Field, Question, Wrong, fields
from simpletuner.wizard.screen import Screen, indented
from simpletuner.wizard.session import Session

EXPLAIN, BACK = "?", "<"
ROOM = 10  # columns for brackets and a short answer
LONGEST_PROPOSAL = 40  # characters that stand beside the prompt; a longer one gets a line of its own


class GoBack(Exception):
    """Somebody wants to change an earlier answer."""


class Conversation:
    """Asks what is not answered yet."""

    def __init__(self, session: Session, screen: Screen):
        self.session, self.screen = session, screen
        self.fields = fields(session.questions)
        self._titled: Question | None = None
        self._asked: list[int] = []  # places of the fields that were asked, for the way back

    def greet(self) -> None:
        screen = self.screen
        screen.say(f"SimpleTuner: a configuration in {len(self.session.questions)} questions", colour="bold")
        screen.say(f"It goes to {self.session.documents.config}; nothing is written before you have seen it.")
        keys = "Arrows or a number choose, Enter" if screen.arrows else "Enter"
        screen.say(f"{keys} takes what is proposed, {EXPLAIN} explains, {BACK} goes back, Ctrl-C stops.")

    def ask_all(self, given: Mapping[str, Any], accepted: Sequence[str] = (), position: int = 0) -> None:
        """Every question that `given` does not answer. Wrong if one of those answers cannot be taken."""
        waiting = dict(given)
        while position < len(self.fields):
            field = self.fields[position]
            if field.applies(self.session):
                self._title(field)
                try:
                    if field.name in waiting:
                        self._repeat(field, waiting.pop(field.name), field.name in accepted)
                    elif self._ask(field):
                        self._asked.append(position)
                except GoBack:
                    position = self._back(position)
                    continue
            position += 1

    def _back(self, position: int) -> int:
        """Where the field is that was asked last; its answer and all after it are taken back."""
        position = self._asked.pop() if self._asked else position
        self.session.take_back(self.fields[position])
        self._titled = None
        return position

    def ask_again(self) -> None:
        """The last question once more. If all answers were given before, there is none to go back to."""
        if self._asked:
            self.ask_all({}, position=self._back(0))

    def agreed(self, question: str) -> bool:
        """A yes or no; Enter is yes."""
        while True:
            word = self._pick(question, f"({YES}/{NO})", (YES, NO), 0).lower()
            if word == BACK:
                raise GoBack
            answer = next((value for value in (YES, NO) if word and value.startswith(word)), None)
            if answer is not None:
                return answer == YES
            self.screen.say("yes or no", 2)

    # ---- one question

    def _title(self, field: Field) -> None:
        """The head of the field's question, unless it stands there already."""
        question = next(one for one in self.session.questions if field in one.fields)
        if question is self._titled:
            return
        self._titled = question
        self.screen.say()
        number = self.session.questions.index(question) + 1
        self.screen.say(f"{number}/{len(self.session.questions)}  {question.title}", colour="bold")
        for line in question.seen(self.session):
            self.screen.say(line, 2)

    def _ask(self, field: Field) -> bool:
        """Asks until there is an answer. False if there was nothing to decide."""
        offered = field.choices(self.session)
        proposal = self._proposal(field)
        if len(offered) == 1:
            self.session.give(field, offered[0].value, accepted=True)
            self.screen.say(f"{field.ask}: {_line(offered[0])}", 2)
            self._tell(field)
            return False
        if any(one.note for one in offered):
            self._offer(offered, proposal)
        elif isinstance(proposal, dict):
            for text in proposal.values():
                self.screen.say(f"- {text}", 2)
        while not self._answered(field, offered, proposal):
            pass
        self._tell(field)
        return True

    def _proposal(self, field: Field) -> Any:
        """What was answered before somebody went back, if it can still be answered; else what is proposed."""
        if field.name in self.session.earlier:
            try:
                return field.read(self.session, self.session.earlier[field.name])
            except Wrong:
                pass
        return field.proposal(self.session)

    def _repeat(self, field: Field, answer: Any, accepted: bool) -> None:
        """Takes an answer that was given before, and shows it."""
        take(self.session, field, answer, accepted)
        self.screen.say(f"{field.ask}: {_shown(self.session.answers[field.name])}", 2)
        self._tell(field)

    def _offer(self, offered: Sequence[Choice], proposal: Any) -> None:
        names = [one.value for one in offered]
        marked = names.index(proposal) if proposal in names else 0
        if not self.screen.choices([(one.value, one.note) for one in offered], marked):
            self.screen.say(f"{EXPLAIN} tells what they mean", 2)

    def _answered(self, field: Field, offered: Sequence[Choice], proposal: Any) -> bool:
        typed = self._typed(field, offered, proposal)
        if typed == BACK:
            raise GoBack
        if typed == EXPLAIN:
            self.screen.say(field.help, 2)
            for one in offered:
                self.screen.say(_line(one), 4)
            return False
        try:
            if typed == "" and proposal is not None:
                take(self.session, field, proposal, accepted=field.name not in self.session.earlier)
            else:
                take(self.session, field, typed)
        except Wrong as wrong:
            self.screen.say(f"{wrong}" + (f"; {wrong.fix}" if wrong.fix else ""), 2)
            return False
        return True

    def _typed(self, field: Field, offered: Sequence[Choice], proposal: Any) -> str:
        """What was answered; the empty text for the proposal."""
        if not offered:
            return self.screen.line(self._prompt(field, proposal), field.path)
        names = [one.value for one in offered]
        start = names.index(proposal) if proposal in names else 0
        listed = any(one.note for one in offered)
        if listed:
            word = self.screen.pick(field.ask, names, start)
        else:
            word = self._pick(field.ask, f"({'/'.join(names)})", names, start)
        number = _numbered(word, len(names))
        chosen = names[number] if number is not None and word not in names else word
        return "" if chosen == proposal else chosen

    def _pick(self, question: str, offered: str, names: Sequence[str], start: int) -> str:
        """Asks for one of a few names; a question that leaves no room for them stands on lines before them."""
        prompt = f"{question} {offered}"
        if len(prompt) + ROOM > self.screen.width:
            self.screen.say(question)
            prompt = offered
        return self.screen.pick(prompt, names, start, numbered=False)

    def _prompt(self, field: Field, proposal: Any) -> str:
        if proposal is None or proposal == "":
            return f"{field.ask}{', empty for none' if proposal == '' else ''}: "
        shown = "these" if isinstance(proposal, dict) else _shown(proposal)
        if len(shown) > LONGEST_PROPOSAL or len(field.ask) + len(shown) > self.screen.width - ROOM:
            for line in indented(f"proposed: {shown}", self.screen.width, 2):
                self.screen.raw(line)
            shown = "Enter"
        return f"{field.ask} [{shown}]: "

    def _tell(self, field: Field) -> None:
        for line in field.outcome(self.session):
            self.screen.say(line, 2)


def _numbered(word: str, count: int) -> int | None:
    """The place in a list that a number names, counted from 1 by people."""
    return int(word) - 1 if word.isdigit() and 1 <= int(word) <= count else None


def _line(one: Choice) -> str:
    return f"{one.value}, {one.note}" if one.note else one.value


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(map(str, value.values()))
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
