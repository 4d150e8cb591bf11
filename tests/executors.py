"""An executor without workers, for tests of what runs on executors."""

from concurrent.futures import BrokenExecutor, Future


class Pool:
    """An executor whose tasks fail in the way that `fails(argument)` returns: an exception, or None."""

    def __init__(self, fails):
        self.fails, self.broken, self.closed = fails, False, False

    def submit(self, function, *arguments):
        if self.broken:
            raise BrokenExecutor("a process was terminated abruptly")
        future, error = Future(), self.fails(arguments[-1])
        if error is None:
            future.set_result(function(*arguments))
        else:
            self.broken = isinstance(error, BrokenExecutor)
            future.set_exception(error)
        return future

    def shutdown(self, wait, cancel_futures):
        self.closed = True
