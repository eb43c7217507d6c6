from .compiled import (
    CompiledTask as CompiledTask,
    CompiledTemplate as CompiledTemplate,
    Reference as Reference,
    parse_expression as parse_expression,
    references_in as references_in,
    whole_reference as whole_reference,
)
from .compiler import (
    compile_document as compile_document,
    compile_file as compile_file,
    compile_files as compile_files,
    compile_mapping as compile_mapping,
    compile_text as compile_text,
)
from .diagnostics import (
    Diagnostic as Diagnostic,
    Findings as Findings,
    at_value as at_value,
    errors_of as errors_of,
    find as find,
    in_file_order as in_file_order,
)
from .effects import idle_fields as idle_fields
from .given_rows import with_rows as with_rows
from .grid import Sweep as Sweep, parse_axis as parse_axis, sweep as sweep
from .index_check import indexes_needed as indexes_needed
from .loader import (
    Document as Document,
    anchor_files as anchor_files,
    anchored_files as anchored_files,
    load_documents as load_documents,
    parse_documents as parse_documents,
)
from .overrides import (
    Sets as Sets,
    apply_sets as apply_sets,
    is_set as is_set,
    merge_overrides as merge_overrides,
)
from .partition import (
    fill_partition as fill_partition,
    with_partition as with_partition,
    without_partitions as without_partitions,
)
from .references import resolve_references as resolve_references, resolve_task as resolve_task
from .tool_check import look_for_tools as look_for_tools
from .tree import (
    Path as Path,
    Position as Position,
    Tree as Tree,
    format_path as format_path,
    tree_of as tree_of,
)
