from .order import (
    CostWeights as CostWeights,
    LoadLine as LoadLine,
    RowKey as RowKey,
    planned_order as planned_order,
    row_load as row_load,
    shared_beginnings as shared_beginnings,
    tokens_along as tokens_along,
)
from .plan import (
    PLAN_NAME as PLAN_NAME,
    CarriedColumns as CarriedColumns,
    Chunk as Chunk,
    Expectation as Expectation,
    Plan as Plan,
    Shard as Shard,
    ShardLoad as ShardLoad,
    cut_shards as cut_shards,
    shard_count as shard_count,
    shard_key as shard_key,
)
