use std::io;

use indicatif::TermLike;

use super::*;

/// A terminal that remembers every frame drawn on it.
#[derive(Clone, Debug, Default)]
struct Screen(Arc<Mutex<(String, Vec<String>)>>);

impl TermLike for Screen {
    fn width(&self) -> u16 {
        120
    }
    fn move_cursor_up(&self, _: usize) -> io::Result<()> {
        Ok(())
    }
    fn move_cursor_down(&self, _: usize) -> io::Result<()> {
        Ok(())
    }
    fn move_cursor_right(&self, _: usize) -> io::Result<()> {
        Ok(())
    }
    fn move_cursor_left(&self, _: usize) -> io::Result<()> {
        Ok(())
    }
    fn write_line(&self, text: &str) -> io::Result<()> {
        self.write_str(text)
    }
    fn write_str(&self, text: &str) -> io::Result<()> {
        self.0.lock().unwrap().0.push_str(text);
        Ok(())
    }
    fn clear_line(&self) -> io::Result<()> {
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        let mut screen = self.0.lock().unwrap();
        let frame = std::mem::take(&mut screen.0);
        screen.1.push(frame);
        Ok(())
    }
}

fn progress(message: Option<&str>, current: f64, total: f64) -> Progress {
    Progress { message: message.map(str::to_owned), current: Some(current), total: Some(total) }
}

#[test]
fn message_and_place_of_a_line_are_seen_together() {
    let screen = Screen::default();
    let bar = Bar::on(ProgressDrawTarget::term_like_with_hz(Box::new(screen.clone()), 255));
    bar.step("running");
    let frames = || screen.0.lock().unwrap().1.clone();
    for n in 1..=5_u32 {
        let message = format!("step {n} of 5");
        bar.progress(&progress(Some(&message), f64::from(n), 5.0));
        let patience = std::time::Instant::now() + Duration::from_secs(20);
        while !frames().iter().any(|frame| frame.contains(&message)) {
            assert!(std::time::Instant::now() < patience, "{:#?}", frames());
            std::thread::yield_now();
        }
    }
    let frames = frames();
    let steps: Vec<&String> = frames.iter().filter(|frame| frame.contains("step ")).collect();
    for frame in steps {
        let n = frame.split("step ").nth(1).and_then(|rest| rest.chars().next()).unwrap();
        assert!(frame.contains(&format!("] {n}/5 ")), "{frame}");
    }
}

#[test]
fn numbers_have_no_more_digits_than_anybody_reads() {
    assert_eq!(["3", "0.5", "1234567"], [3.0, 0.5, 1_234_567.0].map(number));
    assert_eq!(["0.12", "12.3", "1235"], [0.123_456, 12.345_6, 1_234.567].map(short_number));
}

#[test]
fn a_share_is_told_only_where_there_is_a_total() {
    let progress = |current, total| Progress { message: None, current, total };
    assert_eq!(share(&progress(Some(5.0), Some(20.0))), Some(25));
    assert_eq!(share(&progress(Some(50.0), Some(20.0))), Some(100));
    assert_eq!(share(&progress(Some(-1.0), Some(20.0))), Some(0));
    assert_eq!(share(&progress(Some(5.0), Some(0.0))), None);
    assert_eq!(share(&progress(Some(5.0), None)), None);
}
