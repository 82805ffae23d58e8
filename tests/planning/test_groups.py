"""The groups of a collective, in each form in which XLA writes them."""

import numpy as np
import pytest

from jaxformer.planning import groups

FORMS = {
    "replica_groups={{0,1},{2,3}}, dimensions={0}": [[0, 1], [2, 3]],
    "channel_id=3, replica_groups={}, to_apply=%add": [[0, 1, 2, 3]],
    "dimensions={0}": [[0, 1, 2, 3]],
    "replica_groups=[2,2]<=[4], use_global_device_ids=true": [[0, 1], [2, 3]],
    "replica_groups=[2,2]<=[2,2]T(1,0), channel_id=1": [[0, 2], [1, 3]],
    "replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_1'}, to_apply=%add": [[0, 1], [2, 3]],
    "replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0'}, to_apply=%add": [[0, 2], [1, 3]],
    "replica_groups=mesh['axis_0'=1,'axis_1'=4] {'axis_0','axis_1'}, x={1}": [[0, 1, 2, 3]],
    "replica_groups=mesh['a'=4] {'a':(1)2}, x": [[0, 2], [1, 3]],
    "replica_groups=mesh['a'=4] {'a':(2)2}, x": [[0, 1], [2, 3]],
    "replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}, x": [[0, 2], [1, 3]],
    "replica_groups=mesh['a'=2,'b'=2], device_ids=(0,2,1,3) {'a'}, x": [[0, 1], [2, 3]],
    "source_target_pairs={{0,1},{1,0},{2,3}}, metadata={op_name=x}": [[0, 1], [1, 0], [2, 3]],
}


@pytest.mark.parametrize("attributes", FORMS)
def test_each_form_is_read(attributes):
    np.testing.assert_array_equal(groups.of(attributes, 4), FORMS[attributes])
