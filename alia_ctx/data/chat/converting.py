"""Rows of any form -> canonical conversations in a file, and a look at the first few."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.text import Text

from alia_ctx.data.chat.conversation import Conversation, RowError
from alia_ctx.data.chat.counts import ChatCounts, FirstOfEach, LeftOutRow
from alia_ctx.data.chat.encoding import ChatEncoder, EncodedChat
from alia_ctx.data.chat.forms import read_record
from alia_ctx.data.chat.json_text import write
from alia_ctx.data.chat.rows import Row, read_rows
from alia_ctx.data.documents.inputs import Inputs, SourceSpec, find_inputs
from alia_ctx.errors import DataError
from alia_ctx.files import atomic_file

_TRAINED, _SEEN = "black on green", "dim"
_LISTED = 100


class ChatConversion:
    """Reads the rows of `inputs`, counts, and lists what cannot be used.

    Without an encoder rows are only read; with one each is rendered, tokenised and its
    mask proven, as `tokenize` does it.
    """

    def __init__(
        self,
        inputs: Sequence[str],
        *,
        form: str = "auto",
        encoder: ChatEncoder | None = None,
        strict: bool = False,
    ) -> None:
        """DataError where there is no such input."""
        self.inputs: Inputs = find_inputs(inputs)
        self.counts, self.left_out = ChatCounts(), FirstOfEach(_LISTED)
        self._form, self._encoder, self._strict = form, encoder, strict

    def conversations(self) -> Iterator[tuple[Row, Conversation, EncodedChat | None]]:
        """Those that can be used, in order, each with its row; DataError at the first
        that cannot where `strict` is set. Turns that were cut off are not among theirs.
        """
        most = 2 * SourceSpec().max_document_bytes
        for file in self.inputs.files:
            for row in read_rows(file, most):
                try:
                    conversation = read_record(row.record(), self._form)
                    encoded = None
                    if self._encoder is not None:
                        encoded = self._encoder.encode(conversation)
                except RowError as error:
                    self._leave_out(LeftOutRow(row.where, error.reason, error.detail))
                    continue
                self.counts.conversations += 1
                if encoded is not None:
                    self.counts.count(encoded.trained, encoded.cut_turns)
                    self.counts.spelled.update(encoded.spelled)
                    self.counts.unshown_reasoning += encoded.unshown_reasoning
                    kept = len(conversation.messages) - encoded.cut_turns
                    conversation = conversation.until(kept)
                yield row, conversation, encoded

    def _leave_out(self, row: LeftOutRow) -> None:
        if self._strict:
            raise DataError(f"{row}; correct or remove the row, or go without --strict")
        self.counts.left_out[row.reason] += 1
        self.left_out.add(row)

    def run(
        self, output: Path | None, show: int, shown: Callable[[RenderableType], None]
    ) -> None:
        """Go through all rows; `shown` gets the first `show` conversations, `output` all,
        as JSON lines that the form `openai` reads. The file is whole or not there.
        """
        with ExitStack() as stack:
            stream = stack.enter_context(atomic_file(output)) if output else None
            for number, (row, conversation, encoded) in enumerate(self.conversations()):
                if number < show:
                    shown(picture(row.where, conversation, encoded, self._encoder))
                if stream is not None:
                    record = {**conversation.to_record(), "source": row.where}
                    stream.write(f"{write(record)}\n".encode("utf-8", "replace"))
            if not self.counts.conversations:
                told = "; ".join(map(str, self.left_out.rows[:3]))
                raise DataError(
                    f"{', '.join(self.inputs.files)}: no conversation that can be used: "
                    f"{told or 'there is no row'}"
                )


def picture(
    where: str,
    conversation: Conversation,
    encoded: EncodedChat | None,
    encoder: ChatEncoder | None,
) -> RenderableType:
    """A conversation as messages, as rendered text, and as tokens, the trained coloured."""
    parts: list[RenderableType] = [Rule(Text(where)), Text("messages", "bold")]
    if conversation.tools is not None:
        parts.append(Text(f"tools: {conversation.tools}"))
    for message in conversation.messages:
        line = Text(f"{message.role}: ", "cyan")
        line.append(message.content or "", "default")
        for call in message.calls:
            line.append(f"\n  -> {call.name} {call.arguments}", "default")
        parts.append(line)
    if encoded is None or encoder is None:
        return Group(*parts)
    parts += [Text("\nrendered", "bold"), Text(encoded.text)]
    trained = int(encoded.trained.sum())
    parts.append(
        Text(f"tokens: {encoded.ids.size}, of which {trained} are trained", "bold")
    )
    return Group(*parts, _tokens(encoded, encoder))


def _tokens(encoded: EncodedChat, encoder: ChatEncoder) -> Text:
    names = encoder.tokenizer.auto.convert_ids_to_tokens(encoded.ids.tolist())
    line = Text()
    for name, trained in zip(names, encoded.trained.tolist(), strict=True):
        # Without colours (a file, a pipe) brackets say what is trained.
        line.append(
            f"[{name}]" if trained else str(name), _TRAINED if trained else _SEEN
        )
        line.append(" ")
    return line
