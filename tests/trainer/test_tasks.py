"""The task schedule: stateless, every game once an epoch."""

from megatron_opid.tasks import TaskSchedule, validation_tasks


def test_an_epoch_plays_every_game_once():
    schedule = TaskSchedule("alfworld", "train", num_tasks=12, tasks_per_step=5, seed=3)
    drawn = [task.index for step in range(12) for task in schedule.draw(step)]
    for epoch in range(5):
        assert sorted(drawn[epoch * 12 : (epoch + 1) * 12]) == list(range(12))
    assert drawn[:12] != drawn[12:24]


def test_a_step_always_draws_the_same():
    schedule = TaskSchedule("alfworld", "train", num_tasks=100, tasks_per_step=4, seed=0)
    assert schedule.draw(7) == schedule.draw(7)
    assert schedule.draw(7) != TaskSchedule("alfworld", "train", 100, 4, seed=1).draw(7)


def test_validation_plays_the_same_games_and_no_more_than_there_are():
    assert [task.index for task in validation_tasks("alfworld", "valid_seen", 5, 8)] == [0, 1, 2, 3, 4]
    assert [task.index for task in validation_tasks("alfworld", "valid_seen", 12, 4)] == [0, 3, 6, 9]
