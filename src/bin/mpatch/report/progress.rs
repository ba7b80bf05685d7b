//! How far long work has come: a bar for those who watch, and now and then a line for those who read it later.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use super::say;

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// Not at all.
    Nothing,
    /// As a bar on a terminal, with rate and time left.
    Bar,
    /// As lines, since standard error is a file or a pipe: a job of hours must not look dead in its log.
    Lines,
}

/// Progress of long work.
#[derive(Debug)]
pub struct Progress {
    what: &'static str,
    bar: ProgressBar,
    started: Instant,
    shown: Shown,
    /// The bar is on the terminal.
    is_drawn: AtomicBool,
    lines: Mutex<Lines>,
}

impl Progress {
    /// Work that is done sooner than this needs no bar.
    const PATIENCE: Duration = Duration::from_secs(1);

    /// `in_words` writes what is done, all that there is, and what is done in a second.
    pub fn new(what: &'static str, total: u64, in_words: fn(f64) -> String, shown: Shown) -> Self {
        let template = "{msg} {wide_bar} {done}/{all}, {rate}/s, {eta} left";
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let key = move |of: fn(&ProgressState) -> f64| {
            move |state: &ProgressState, text: &mut dyn std::fmt::Write| {
                let _ = text.write_str(&in_words(of(state)));
            }
        };
        let style = style.with_key("done", key(|state| state.pos() as f64));
        let style = style.with_key("all", key(|state| state.len().unwrap_or_default() as f64));
        let style = style.with_key("rate", key(ProgressState::per_sec));
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
        bar.set_style(style.progress_chars("=> "));
        bar.set_message(what);
        let started = Instant::now();
        let lines = Mutex::new(Lines { told: started, twentieths: 0 });
        Self { what, bar, started, shown, is_drawn: AtomicBool::new(false), lines }
    }

    /// So much is done, counted from the start.
    pub fn reach(&self, done: u64) {
        self.add(done.saturating_sub(self.bar.position()));
    }

    /// There is so much more to be done than was said; may be called from any thread.
    pub fn expect(&self, more: u64) {
        self.bar.inc_length(more);
    }

    /// So much more is done; may be called from any thread.
    pub fn add(&self, more: u64) {
        self.bar.inc(more);
        match self.shown {
            Shown::Nothing => {}
            Shown::Bar => {
                let due = self.started.elapsed() > Self::PATIENCE;
                if due && !self.is_drawn.swap(true, Ordering::Relaxed) {
                    self.bar.set_draw_target(ProgressDrawTarget::stderr());
                }
            }
            Shown::Lines => self.tell(),
        }
    }

    fn tell(&self) {
        // Whoever holds it is telling.
        let Ok(mut lines) = self.lines.try_lock() else { return };
        let total = self.bar.length().unwrap_or_default();
        if let Some(percent) = lines.due(Instant::now(), self.bar.position(), total) {
            say(&format!("{}: {percent} %, {} left", self.what, HumanDuration(self.bar.eta())));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// When the last line was told, and of how much.
#[derive(Debug)]
struct Lines {
    told: Instant,
    twentieths: u64,
}

impl Lines {
    /// Lines come no faster than this.
    const PAUSE: Duration = Duration::from_secs(60);

    /// The percentage to tell of now, if a line is due: a twentieth after the last one, and not when all is done.
    fn due(&mut self, now: Instant, done: u64, total: u64) -> Option<u64> {
        let twentieths = (20 * u128::from(done) / u128::from(total.max(1))) as u64;
        // There may be more to do than was known when the last line was told.
        self.twentieths = self.twentieths.min(twentieths);
        let is_due = self.twentieths < twentieths
            && twentieths < 20
            && now.saturating_duration_since(self.told) >= Self::PAUSE;
        if is_due {
            *self = Self { told: now, twentieths };
        }
        is_due.then_some(5 * twentieths)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_has_a_line_a_minute_at_most_and_one_for_each_twentieth() {
        let start = Instant::now();
        let mut lines = Lines { told: start, twentieths: 0 };
        let mut at = |seconds: u64, done: u64| lines.due(start + Duration::from_secs(seconds), done, 1000);
        assert_eq!(at(59, 500), None, "too soon");
        assert_eq!(at(60, 49), None, "too little");
        assert_eq!(at(61, 570), Some(55));
        assert_eq!(at(121, 599), None, "no more twentieths");
        assert_eq!(at(121, 600), Some(60));
        assert_eq!(at(180, 700), None, "too soon again");
        assert_eq!(at(900, 1000), None, "done, which the report says");
        assert_eq!(lines.due(start + Duration::from_secs(900), 1000, 6000), None, "there is more to do");
        assert_eq!(lines.due(start + Duration::from_secs(960), 1500, 6000), Some(25));
        assert_eq!(
            Lines { told: start, twentieths: 0 }.due(start + Lines::PAUSE, 0, 0),
            None,
            "nothing to do"
        );
    }
}
