"""What a job looks at before it begins."""

import pytest
import torch

from dinov2.params import InputError
from tasks.call import check_gpus


@pytest.mark.parametrize("given", ["0", "0,1", "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"])
def test_more_gpus_than_the_machine_has_are_refused(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    check_gpus()  # on the CPU any number of processes may take part
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for num_gpus in (2, 1):
        monkeypatch.setattr(torch.cuda, "device_count", lambda num=num_gpus: num)
        if len(given.split(",")) <= num_gpus:
            check_gpus()
            continue
        with pytest.raises(InputError, match="launch gives the job 2 GPUs, but its machine has 1; lower gpus_per_node"):
            check_gpus()
