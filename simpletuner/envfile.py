"""Read config.env: assignments as a shell writes them, without a shell. Every name keeps its place, and nothing is run.

    file = read(Path("config.env"), os.environ)
    file.assignments[0]       Assignment("LEARNING_RATE", "1e-4", "config.env:3:1")
    file.problems             warnings, and an error for each line that is no assignment

Read are K=V, export K=V, K+=V, single and double quotes, $K and ${K:-otherwise}, whole-number sums such as
$((K / 10)), # comments, and texts over several lines. Blanks in an unquoted value are taken as part of it, with a
warning: many such files were never given to a shell.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from simpletuner import reading
from simpletuner.errors import Problem, Severity

EXTRA_ARGS = ("TRAINER_EXTRA_ARGS", "DEBUG_EXTRA_ARGS")  # options written as on the command line; the first one wins

# Name in config.env -> option. Any other name whose lower case is an option means that option.
NAMES = {
    "RESUME_CHECKPOINT": "resume_from_checkpoint",
    "DATALOADER_CONFIG": "data_backend_config",
    "MODEL_NAME": "pretrained_model_name_or_path",
    "TRAINING_SEED": "seed",
    "MAX_NUM_STEPS": "max_train_steps",
    "NUM_EPOCHS": "num_train_epochs",
    "LR_SCHEDULE": "lr_scheduler",
    "LEARNING_RATE_END": "lr_end",
    "USE_GRADIENT_CHECKPOINTING": "gradient_checkpointing",
    "MINIMUM_RESOLUTION": "minimum_image_size",
    "VALIDATION_STEPS": "validation_step_interval",
    "CHECKPOINTING_STEPS": "checkpoint_step_interval",
    "CHECKPOINTING_LIMIT": "checkpoints_total_limit",
    "PUSH_CHECKPOINTS": "push_checkpoints_to_hub",
    "HUB_MODEL_NAME": "hub_model_id",
    "ACCELERATE_CONFIG_PATH": "accelerate_config",
    "TRAINING_NUM_PROCESSES": "num_processes",
    "TRAINING_NUM_MACHINES": "num_machines",
    "TRAINING_DYNAMO_BACKEND": "dynamo_backend",
    "TRAINER_DYNAMO_BACKEND": "dynamo_backend",
    "USE_BITFIT": "layer_freeze_strategy",
    "USE_XFORMERS": "enable_xformers_memory_efficient_attention",
    "PURE_BF16": "adam_bfloat16",
    "MIN_SNR_GAMMA": "snr_gamma",
    "DELETE_ERRORED_IMAGES": "delete_problematic_images",
    "DELETE_SMALL_IMAGES": "delete_unwanted_images",
}
# Names that are the option in capitals, and count from the process environment too when the backend is `env`.
SAME = (
    "MODEL_TYPE MODEL_FAMILY MODEL_FLAVOUR LORA_TYPE LORA_RANK LYCORIS_CONFIG FLUX_LORA_TARGET FLUX_GUIDANCE_VALUE "
    "BASE_MODEL_PRECISION QUANTIZE_VIA OUTPUT_DIR TRAIN_BATCH_SIZE GRADIENT_ACCUMULATION_STEPS MIXED_PRECISION "
    "OPTIMIZER LEARNING_RATE LR_WARMUP_STEPS LR_END USE_EMA CAPTION_DROPOUT_PROBABILITY RESOLUTION RESOLUTION_TYPE "
    "ASPECT_BUCKET_ROUNDING METADATA_UPDATE_INTERVAL READ_BATCH_SIZE WRITE_BATCH_SIZE TEXT_ENCODER_BATCH_SIZE "
    "IMAGE_PROCESSING_BATCH_SIZE TORCH_NUM_THREADS AWS_MAX_POOL_CONNECTIONS VALIDATION_SEED VALIDATION_RESOLUTION "
    "VALIDATION_GUIDANCE VALIDATION_GUIDANCE_REAL VALIDATION_GUIDANCE_RESCALE VALIDATION_NO_CFG_UNTIL_TIMESTEP "
    "VALIDATION_NUM_INFERENCE_STEPS VALIDATION_PROMPT VALIDATION_NEGATIVE_PROMPT VALIDATION_EPOCH_INTERVAL "
    "CHECKPOINT_STEP_INTERVAL CHECKPOINT_EPOCH_INTERVAL PUSH_TO_HUB MODEL_CARD_SAFE_FOR_WORK TRACKER_PROJECT_NAME "
    "TRACKER_RUN_NAME DISABLE_BENCHMARK POST_CHECKPOINT_SCRIPT USE_DORA ACCELERATE_EXTRA_ARGS"
)
BARE = frozenset(NAMES) | frozenset(SAME.split())
# Switches by which configurations once chose the model family.
FAMILIES = {"FLUX", "STABLE_DIFFUSION_3", "STABLE_DIFFUSION_LEGACY", "PIXART_SIGMA", "KOLORS", "HUNYUAN_DIT"}

BLANKS = re.compile(r"(?:[ \t\r]|\\\r?\n)*")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\+?=")
EXPORT = re.compile(r"export(?=[ \t])")
PLAIN = re.compile(r"""[^ \t\r\n"'\\$`;]+""")
VARIABLE = re.compile(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)(?::?-([^}$`\n]*))?\})")
SUM_VARIABLE = re.compile(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)\})")
SUM = re.compile(r"(?:[-+*/%() \t]|\b(?:0|[1-9][0-9]*|[A-Za-z_][A-Za-z0-9_]*)\b)+")
WHOLE = re.compile(r"-?(?:0|[1-9][0-9]*)")
LONGEST_SUM, LARGEST = 200, 2**63 - 1  # characters; what a shell can hold


@dataclass(frozen=True)
class Assignment:
    name: str
    value: str
    where: str  # file:line:column of the name


@dataclass
class EnvFile:
    """The assignments that stand at the end, one for each name, in the order of their first places."""

    name: str
    assignments: list[Assignment] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    failed: bool = False  # it is missing or no text, so that nothing can be said about what it leaves out


class _SyntaxError(Exception):
    def __init__(self, message: str, index: int, fix: str = ""):
        self.message, self.index, self.fix = message, index, fix


class _Reader:
    def __init__(self, text: str, file: EnvFile, environ: Mapping[str, str]):
        self.text, self.file, self.environ, self.index = text, file, environ, 0
        self.place = reading.Lines(text).place
        self.found: dict[str, Assignment] = {}

    def where(self, index: int) -> str:
        line, column = self.place(index)
        return f"{self.file.name}:{line}:{column}"

    def warn(self, message: str, index: int, fix: str) -> None:
        self.file.problems.append(Problem(message, severity="warning", where=self.where(index), fix=fix))

    def read(self) -> None:
        while self._skip():
            try:
                self._statement()
            except _SyntaxError as error:
                place = self.place(error.index)
                details = reading.pointer(self.text, *place)
                self.file.problems.append(
                    Problem(error.message, where=self.where(error.index), details=details, fix=error.fix)
                )
                newline = self.text.find("\n", error.index)
                self.index = len(self.text) if newline < 0 else newline
        self.file.assignments = list(self.found.values())

    def _skip(self) -> bool:
        """Moves past blanks, empty lines, comments and semicolons; False at the end."""
        while self.index < len(self.text):
            if self.text[self.index] == "#":
                self._skip_line()
            elif self.text[self.index].isspace() or self.text[self.index] == ";":
                self.index += 1
            else:
                return True
        return False

    def _skip_line(self) -> None:
        newline = self.text.find("\n", self.index)
        self.index = len(self.text) if newline < 0 else newline

    def _skip_blanks(self) -> None:
        if match := BLANKS.match(self.text, self.index):
            self.index = match.end()

    def _statement(self) -> None:
        exported = EXPORT.match(self.text, self.index)
        if exported:
            self.index = exported.end()
            self._skip_blanks()
        start = self.index
        match = NAME.match(self.text, start)
        if not match:
            raise _SyntaxError("expected NAME=value", start, "only assignments are read; nothing is run")
        self.index = match.end()
        self._skip_blanks()
        blanks = self.index > match.end()
        adds = self.text.startswith("+=", self.index)
        if not adds and not self.text.startswith("=", self.index):
            if exported and self.text[self.index : self.index + 1] in ("", "\n", "#", ";"):
                return  # `export NAME`: every name is handed on anyway
            raise _SyntaxError(
                f'expected "=" after {match[0][:40]}', self.index, "only assignments are read; nothing is run"
            )
        self.index += 2 if adds else 1
        after = self.index
        self._skip_blanks()
        empty = self.index > after and self.text[self.index : self.index + 1] in ("", "\n", "#", ";")
        if blanks or (self.index > after and not empty):
            self.warn(f'blanks around the "=" of {match[0]}', start, "a shell allows none there")
        value, refers = ("", False) if empty else self._value(match[0])
        self._assign(match[0], value, start, adds, refers)

    def _assign(self, name: str, value: str, start: int, adds: bool, refers: bool) -> None:
        before = self.found.get(name)
        if adds and before:
            joint = " " if name in EXTRA_ARGS else ""
            value = before.value + joint + value
        elif before and not refers:
            equal = before.value == value
            message = f"{name} is given twice with {'equal' if equal else 'different'} values"
            where = f"{before.where} and {self.where(start)}"
            severity: Severity = "notice" if equal else "error"
            self.file.problems.append(Problem(message, severity=severity, where=where, fix="keep one"))
        self.found[name] = Assignment(name, value, self.where(start))

    def _value(self, name: str) -> tuple[str, bool]:
        """(text, whether it refers to the earlier value of its own name). Ends behind the value and its comment."""
        pieces: list[str] = []
        refers = quoted = loose = False
        start = self.index
        while self.index < len(self.text):
            char = self.text[self.index]
            if char == "\n" or char == ";":
                break
            if char in " \t\r":
                blanks = self.index
                self._skip_blanks()
                if self.text[self.index : self.index + 1] in ("", "\n", ";", "#"):
                    break
                if ASSIGNMENT.match(self.text, self.index):
                    break
                if quoted:
                    raise _SyntaxError("text after the closing quote", self.index, "put the whole value in quotes")
                if self.text[self.index] in "&|<>":
                    raise _SyntaxError("expected NAME=value only", self.index, "nothing is run; keep the assignment")
                loose = True
                pieces.append(self.text[blanks : self.index])
                continue
            if char in "'\"":
                quoted = True
            piece, own = self._piece(name, char)
            pieces.append(piece)
            refers |= own
        if self.text[self.index : self.index + 1] == "#":
            self._skip_line()
        if loose:
            self.warn(f"the value of {name} holds blanks", start, "put it in quotes")
        return "".join(pieces), refers

    def _piece(self, name: str, char: str) -> tuple[str, bool]:
        """One quoted text, variable or run of plain characters."""
        if char == "'":
            return self._single(), False
        if char == '"':
            return self._double(name)
        if char == "\\":
            piece = self.text[self.index + 1 : self.index + 2]
            self.index += 1 + len(piece)
            return "" if piece == "\n" else piece, False
        if char in "$`":
            return self._variable(name)
        if char == "(" and self.text[self.index - 1] == "=":
            raise _SyntaxError("lists of a shell are not read", self.index, "put the value in quotes")
        match = PLAIN.match(self.text, self.index)
        assert match  # the other characters were handled above
        self.index = match.end()
        return match[0], False

    def _single(self) -> str:
        start = self.index
        close = self.text.find("'", start + 1)
        if close < 0:
            raise _SyntaxError("a quote is not closed", start, "write ' at the end of the value")
        self.index = close + 1
        return self.text[start + 1 : close]

    def _double(self, name: str) -> tuple[str, bool]:
        start = self.index
        pieces: list[str] = []
        refers = False
        self.index += 1
        while True:
            char = self.text[self.index : self.index + 1]
            if not char:
                raise _SyntaxError("a quote is not closed", start, 'write " at the end of the value')
            if char == '"':
                self.index += 1
                return "".join(pieces), refers
            if char in "$`":
                piece, own = self._variable(name)
                refers |= own
            elif char == "\\":
                piece = self._escape(name)
            else:
                piece = char
                self.index += 1
            pieces.append(piece)

    def _escape(self, name: str) -> str:
        following = self.text[self.index + 1 : self.index + 2]
        self.index += 1 + len(following)
        if following == "\n":  # who splits the words joins the lines, so that a comment among them ends with its line
            return "\\\n" if name in EXTRA_ARGS else ""
        return following if following in ('"', "\\", "$", "`") else "\\" + following

    def _variable(self, name: str) -> tuple[str, bool]:
        """The value of $NAME or ${NAME}: of an assignment above, else of the environment."""
        start = self.index
        if self.text.startswith("$((", start):
            return self._sum(name)
        match = VARIABLE.match(self.text, start)
        if not match:
            if self.text[start] == "`" or self.text.startswith("$(", start):
                raise _SyntaxError("commands are not run", start, "write the value itself")
            if self.text.startswith("${", start):
                raise _SyntaxError("this kind of ${...} is not read", start, "write the value itself")
            self.index += 1
            return "$", False
        self.index = match.end()
        variable, otherwise = match[1] or match[2], match[3]
        value = self._current(variable)
        if otherwise is not None and not value:
            return otherwise, variable == name
        if value is None and variable != name:
            raise _SyntaxError(f"{variable} is not set", start, f"assign {variable} in a line above, or in the shell")
        return value or "", variable == name

    def _current(self, variable: str) -> str | None:
        return self.found[variable].value if variable in self.found else self.environ.get(variable)

    def _sum(self, name: str) -> tuple[str, bool]:
        """The value of $((...))."""
        start = self.index
        depth, end = 0, start + 1
        while end < len(self.text):
            depth += {"(": 1, ")": -1}.get(self.text[end], 0)
            end += 1
            if depth == 0:
                break
        inner = self.text[start + 3 : end - 2]
        try:
            if depth or self.text[end - 2 : end] != "))":
                raise ValueError("not closed")
            value = total(inner, self._current)
        except ValueError:
            raise _SyntaxError("this kind of $((...)) is not read", start, "write the value itself") from None
        self.index = end
        return str(value), name in NAME.findall(inner)


def total(text: str, value_of: Callable[[str], str | None]) -> int:
    """What a shell computes for $((text)). ValueError if that is more than + - * / % of whole numbers and names.

    A name whose value is missing or empty counts 0; $NAME and ${NAME} are replaced by their text, as in a shell.
    """
    text = SUM_VARIABLE.sub(lambda match: value_of(match[1] or match[2]) or "", text).strip()
    # A number that starts with 0 is octal to a shell, and ++ and -- change a variable.
    if not SUM.fullmatch(text) or len(text) > LONGEST_SUM or "++" in text or "--" in text:
        raise ValueError(text)
    try:
        value = _total(ast.parse(text, mode="eval").body, value_of)
    except (SyntaxError, ZeroDivisionError) as error:
        raise ValueError(text) from error
    if abs(value) > LARGEST:
        raise ValueError(text)
    return value


def _total(node: ast.expr, value_of: Callable[[str], str | None]) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.Name):
        value = value_of(node.id) or "0"
        if not WHOLE.fullmatch(value):
            raise ValueError(value)
        return int(value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_total(node.operand, value_of)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
        return OPERATIONS[type(node.op)](_total(node.left, value_of), _total(node.right, value_of))
    raise ValueError(ast.unparse(node))


def _divided(one: int, other: int) -> int:
    """Towards zero, as a shell divides; Python's // goes down."""
    quotient = abs(one) // abs(other)
    return quotient if (one < 0) == (other < 0) else -quotient


OPERATIONS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: _divided,
    ast.Mod: lambda one, other: one - _divided(one, other) * other,
}


def parse_text(text: str, name: str, environ: Mapping[str, str]) -> EnvFile:
    """The assignments of a text in memory; `name` is for messages, `environ` for variables that it refers to."""
    file = EnvFile(name)
    text = text.replace("\r\n", "\n")
    reader = _Reader(text, file, environ)
    if "\0" in text:
        file.failed = True
        file.problems.append(Problem("a zero byte", where=reader.where(text.index("\0")), fix="save it as a text file"))
    else:
        reader.read()
    return file


def read(path: Path, environ: Mapping[str, str]) -> EnvFile:
    """The file at `path`. If it is missing or not UTF-8, that is among its problems, never an exception."""
    text, problems = reading.read_text(path)
    if any(problem.severity == "error" for problem in problems):
        return EnvFile(str(path), problems=problems, failed=True)
    file = parse_text(text, str(path), environ)
    file.problems[:0] = problems
    return file
