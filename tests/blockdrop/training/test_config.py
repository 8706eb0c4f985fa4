"""Flags: the reference's names and defaults, and the schedules they stand for."""

from blockdrop.cl_train import CurriculumConfig
from blockdrop.evaluate import EvaluateConfig
from blockdrop.finetune import FinetuneConfig
from blockdrop.loading import name_of_network


def test_defaults_are_the_references() -> None:
    for config in (CurriculumConfig(), FinetuneConfig()):
        assert name_of_network(config.model, []) == "R110_C10"
        assert (config.data_dir, config.cv_dir) == ("data/", "cv/tmp/")
        assert (config.wd, config.batch_size, config.lr_decay_ratio, config.alpha) == (0, 256, 0.1, 0.8)
        assert config.test_every == 10
    curriculum, fine = CurriculumConfig(), FinetuneConfig()
    assert (curriculum.lr, curriculum.max_epochs, curriculum.epoch_step) == (1e-3, 10000, 10000)
    assert (curriculum.penalty, curriculum.beta, curriculum.cl_step) == (-1, 0.1, 1)
    assert (fine.lr, fine.max_epochs, fine.epoch_step, fine.penalty) == (1e-4, 2000, 1600, -5)
    assert EvaluateConfig().load == ()


def test_learning_rate_steps_down() -> None:
    config = FinetuneConfig(lr=1.0, epoch_step=2, lr_decay_ratio=0.1)
    assert [round(config.step_lr(epoch), 9) for epoch in range(5)] == [1.0, 1.0, 0.1, 0.1, 0.01]


def test_every_tenth_epoch_and_the_last_are_tested() -> None:
    config = FinetuneConfig(max_epochs=13)
    assert [epoch for epoch in range(13) if config.tests_after(epoch)] == [0, 10, 12]
