"""Three methods in a file of one's own; docs/add-a-method.md goes through them."""

import torch
from consistency.plugins import objective
from consistency.students.losses import mse, pseudo_huber


@objective(draws="targets")
def two_segments(student, batch, context, *, segments=2):
    """Multistep consistency: towards the border of the segment that t lies in, not all the way to 0."""
    length = context.flow.steps // segments
    border = (batch["t"] - 1) // length * length
    prediction = student(batch["x_t"], batch["t"], batch["cond"], border)
    with torch.no_grad():
        return prediction, student(batch["x_r"], batch["r"], batch["cond"], border)


@objective(draws="targets")
def mixed(student, batch, context, *, share=0.5):
    """Huber's distance to the teacher's ODE solution, and the squared one to CM's target."""
    prediction = student(batch["x_t"], batch["t"], batch["cond"])
    with torch.no_grad():
        neighbour = student(batch["x_r"], batch["r"], batch["cond"])
    return share * pseudo_huber(prediction, batch["x_0"]) + (1 - share) * mse(prediction, neighbour)


@objective(draws="pairs")
def mean_flow(student, batch, context, *, power=1.0, c=0.001):
    """MeanFlow: u → v − (t − r) du/dt, d/dt along the trajectory; weight 1/(‖Δ‖² + c)^p."""
    x, t, r, v, cond = (batch[name] for name in ("x_t", "t", "r", "velocity", "cond"))
    _, change = student.derivative(x, t, cond, v, r, of_velocity=True)
    target = v - (t - r).reshape(-1, *[1] * (x.ndim - 1)) * change
    error = (student.average_velocity(x, t, cond, r) - target).square().flatten(1).sum(1)
    return error / (error.detach() + c) ** power
