"""The table of ops under test. A new op joins every test that goes over ops by adding a row."""

from __future__ import annotations

from tests.support import batch_norm, conv_norm_act, group_norm, norm_act_conv, row_norms

OPERATORS = {
    operator.name: operator
    for operator in (
        group_norm.OPERATOR,
        batch_norm.OPERATOR,
        conv_norm_act.OPERATOR,
        norm_act_conv.OPERATOR,
        row_norms.LAYER_NORM,
        row_norms.RMS_NORM,
    )
}
