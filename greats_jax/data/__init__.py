"""Training data: records, chat formatting with label masks, mixtures, and candidates as a pure function of the step."""

from greats_jax.data.building import RecordTokenizer, TokenizedRecords, build_pool, padding_token
from greats_jax.data.config import BadRecordPolicy, DataConfig, RecordFormat, SourceConfig, Template
from greats_jax.data.examples import Example, LanguageBatch, collate
from greats_jax.data.formats import BadRecord, Conversation, Message, PlainText, PromptCompletion, Record, parse_record
from greats_jax.data.pool import Pool
from greats_jax.data.randomness import permutation
from greats_jax.data.records import LoadedRecord, LoadedRecords, load_hub_split, load_records
from greats_jax.data.rendering import Rendered, Renderer, render
from greats_jax.data.sampling import Candidates, CandidateSampler, bucket_lengths
from greats_jax.data.tokens import Encoded, Encoder

__all__ = [
    "BadRecord",
    "BadRecordPolicy",
    "CandidateSampler",
    "Candidates",
    "Conversation",
    "DataConfig",
    "Encoded",
    "Encoder",
    "Example",
    "LanguageBatch",
    "LoadedRecord",
    "LoadedRecords",
    "Message",
    "PlainText",
    "Pool",
    "PromptCompletion",
    "Record",
    "RecordFormat",
    "RecordTokenizer",
    "Rendered",
    "Renderer",
    "SourceConfig",
    "Template",
    "TokenizedRecords",
    "bucket_lengths",
    "build_pool",
    "collate",
    "load_hub_split",
    "load_records",
    "padding_token",
    "parse_record",
    "permutation",
    "render",
]
