"""What a sweep says of its progress: a line now and then, with the time that is left."""

from deadreckon.cli import sweep as command
from deadreckon.study.plan import Planned
from deadreckon.study.run import finished

DONE = finished(Planned("read", "a"), result={}, why="", seconds=1.0)
FAILED = finished(Planned("read", "b"), result=None, why="x", seconds=1.0)


def test_time_left_is_that_of_the_tasks_computed_so_far(monkeypatch, capsys):
    clock = [1000.0]
    monkeypatch.setattr(command.time, "monotonic", lambda: clock[0])
    pace = command._Pace()
    for done in range(1, 51):  # found in the store: no time, no line
        pace.say(done, 200, None)
    assert pace.left(150) == ""
    clock[0] += 20
    pace.say(51, 200, DONE)
    assert capsys.readouterr().err == ""  # said nothing for half a minute
    clock[0] += 20
    pace.say(52, 200, FAILED)
    assert capsys.readouterr().err == "52 of 200 tasks, 20 s a task, 1 failed, about 49 min left\n"
    assert pace.left(1) == "20 s a task, 1 failed, about 20 s left"
    assert pace.left(1000) == "20 s a task, 1 failed, about 5 h 33 min left"
