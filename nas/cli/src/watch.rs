//! Following a job to its end, with a bar on a terminal.

use std::io::{self, IsTerminal, Write};
use std::sync::mpsc;
use std::time::Duration;

use cairn_mhost::api::JobView;
use cairn_mhost::jobs::JobState;

use crate::client::{Client, ClientError};
use crate::table::job_progress;

/// How often the node is asked.
const ASK_INTERVAL: Duration = Duration::from_millis(200);
/// Characters of the bar.
const BAR_CHARS: u64 = 24;

/// A line with a bar: finished steps count whole, the present one by its progress.
pub fn bar(job: &JobView) -> String {
    let within = job.progress.as_ref().filter(|p| p.total > 0);
    let (done, total) = within.map_or((0, 1), |p| (p.done.min(p.total), p.total));
    let steps = u128::from(job.steps_total.max(1));
    let filled = (u128::from(job.steps_done) * u128::from(total) + u128::from(done))
        * u128::from(BAR_CHARS)
        / (steps * u128::from(total));
    let filled = u64::try_from(filled).unwrap_or(0).min(BAR_CHARS);
    let mut line = format!("job {} {} [", job.id, job.title);
    for i in 0..BAR_CHARS {
        line.push(if i < filled { '#' } else { '.' });
    }
    let words = job_progress(job);
    format!("{line}]{}{words}", if words.is_empty() { "" } else { " " })
}

/// Asks until the job has ended.
///
/// # Errors
/// The node cannot be reached, or the job has failed.
pub fn follow(client: &Client, id: u64) -> Result<JobView, ClientError> {
    let mut err = io::stderr().lock();
    let bars = err.is_terminal();
    // A channel that nobody sends to: a pause without a thread of its own.
    let (_keep, pause) = mpsc::channel::<()>();
    loop {
        let job: JobView = client.get(&format!("jobs/{id}"))?;
        if bars {
            write!(err, "\r\x1b[K{}", bar(&job))?;
            err.flush()?;
        }
        if job.state != JobState::Running {
            if bars {
                write!(err, "\r\x1b[K")?;
            }
            return match job.state {
                JobState::Failed => Err(ClientError::JobFailed {
                    id,
                    title: job.title,
                    message: job.message,
                    what_to_do: job.what_to_do,
                }),
                JobState::Done | JobState::Running => Ok(job),
            };
        }
        if pause.recv_timeout(ASK_INTERVAL) == Err(mpsc::RecvTimeoutError::Disconnected) {
            return Ok(job);
        }
    }
}
