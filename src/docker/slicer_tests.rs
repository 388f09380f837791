//! Output of modules, whole, cut and hostile.

use proptest::prelude::*;

use super::*;

/// What is left in the log, and each progress as its message and how far.
fn read(pieces: &[&[u8]]) -> (String, Vec<(String, f64)>) {
    let (mut elements, mut text, mut told) = (Elements::new(), Vec::new(), Vec::new());
    let mut tell = |piece: Piece<'_>| match piece {
        Piece::Text(bytes) => text.extend_from_slice(bytes),
        Piece::Progress(Progress { message, current, total }) => {
            assert_eq!(total, Some(1.0));
            told.push((message.unwrap(), current.unwrap()));
        }
    };
    for piece in pieces {
        elements.feed(piece, &mut tell);
        assert!(elements.held.len() < HELD);
    }
    elements.finish(&mut tell);
    (String::from_utf8_lossy(&text).into_owned(), told)
}

fn of(text: &str) -> (String, Vec<(String, f64)>) {
    read(&[text.as_bytes()])
}

fn told(message: &str, current: f64) -> (String, f64) {
    (message.to_owned(), current)
}

#[test]
fn a_module_that_runs_as_slicers_do_leaves_its_own_words_only() {
    let (text, progress) = of("before\n\
         <filter-start>\n<filter-name>Median</filter-name>\n<filter-comment> \"Smooth &lt;it&gt; &amp; go\" </filter-comment>\n</filter-start>\n\
         <filter-progress>0.25</filter-progress>\n<filter-stage-progress>0.5</filter-stage-progress>\n\
         between\n<filter-progress> 0.75 </filter-progress>\n\
         <filter-end>\n<filter-name>Median</filter-name>\n<filter-time>1.5</filter-time>\n</filter-end>\nafter\n");
    assert_eq!(text, "before\nbetween\nafter\n");
    let message = "\"Smooth <it> & go\"";
    assert_eq!(progress, [told(message, 0.25), told(message, 0.75), told(message, 0.75)]);
}

#[test]
fn the_message_is_the_last_comment_else_the_name_else_unknown() {
    let progress = |n: f64| format!("<filter-progress>{n}</filter-progress>");
    assert_eq!(of(&progress(0.5)).1, [told("Unknown", 0.5)]);
    let named = format!("<filter-name>N</filter-name>{}", progress(0.5));
    assert_eq!(of(&named).1, [told("N", 0.5)]);
    let later = format!("{named}<filter-comment>C</filter-comment>");
    assert_eq!(of(&later).1, [told("N", 0.5), told("C", 0.5)]);
    assert_eq!(unescaped("&amp;lt; "), "&lt;", "it is unescaped once");
}

#[test]
fn what_only_looks_like_an_element_stays_in_the_log() {
    for text in [
        "<filter-unknown>1</filter-unknown>\n",
        "a < b <filter <<filter- </filter-progress>\n",
        "<filter-progress>1</filter-name>\n",
        "<filter-progress>1<b></filter-progress>\n",
        "<filter-start>\nnever closed",
        "<filter-comment>never closed",
        "<filter-progress>0.5</filter-prog",
    ] {
        assert_eq!(of(text), (text.to_owned(), Vec::new()));
    }
    let (text, progress) = of("<filter-comment><filter-progress>0.5</filter-progress>\nx");
    assert_eq!((text.as_str(), progress), ("<filter-comment>x", vec![told("Unknown", 0.5)]));
    let (text, progress) =
        of("<filter-progress>half</filter-progress>\n<filter-progress>nan</filter-progress>x");
    assert_eq!((text.as_str(), progress.len()), ("x", 0), "it is no number, and an element");
}

#[test]
fn an_element_without_an_end_is_told_once_it_is_too_long_to_hold() {
    for open in ["<filter-start>\n", "<filter-comment>", "<filter-end><filter-name>"] {
        let flood = format!("{open}{}", "x".repeat(3 * HELD));
        let pieces: Vec<&[u8]> = flood.as_bytes().chunks(1000).collect();
        assert_eq!(read(&pieces).0, flood, "{open}");
        assert_eq!(of(&flood).0, flood, "{open}");
        let after = format!("{flood}\n<filter-progress>1</filter-progress>\nend");
        assert_eq!(of(&after), (format!("{flood}\nend"), vec![told("Unknown", 1.0)]), "{open}");
    }
}

/// A part of a module's output, what is left of it, and the progress value in it.
fn part() -> impl Strategy<Value = (String, String, Option<f64>)> {
    prop_oneof![
        "[ab<>/ é-]{0,12}\n".prop_map(|text| (text.clone(), text, None)),
        "(</?filter-)?[a-z>]{0,8}\n".prop_map(|text| (text.clone(), text, None)),
        (0_u8..=100).prop_map(|n| {
            let value = f64::from(n) / 100.0;
            (format!("<filter-progress>{value}</filter-progress>\n"), String::new(), Some(value))
        }),
        "[a-z&; ]{0,9}".prop_map(|text| (
            format!("<filter-time>{text}</filter-time> \n"),
            String::new(),
            None
        )),
        "[a-z\n ]{0,9}".prop_map(|text| {
            (
                format!(
                    "<filter-start>{text}<filter-stage-progress>1</filter-stage-progress></filter-start>\n"
                ),
                String::new(),
                None,
            )
        }),
    ]
}

proptest! {
    #[test]
    fn any_output_in_any_pieces_gives_the_same(
        parts in prop::collection::vec(part(), 0..12), cuts in prop::collection::vec(0_usize..400, 0..30),
    ) {
        // A text that opens an element would swallow what follows.
        let tags = || Leaf::ALL.iter().map(|leaf| leaf.tags()).chain(Block::ALL.iter().map(|block| block.tags()));
        let opens = |text: &str| tags().any(|tags| text.contains(tags[0]));
        prop_assume!(!parts.iter().any(|(_, left, _)| opens(left)));
        let text: String = parts.iter().map(|(text, ..)| text.as_str()).collect();
        let bytes = text.as_bytes();
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
        let (left, progress) = read(&pieces);
        // White space behind an element goes with it, and so does that before a text.
        let words = |text: &str| text.split_whitespace().collect::<String>();
        let expected: String = parts.iter().map(|(_, left, _)| left.as_str()).collect();
        prop_assert_eq!(words(&left), words(&expected));
        prop_assert_eq!(&of(&text), &(left, progress.clone()));
        let values: Vec<f64> = progress.into_iter().map(|(_, value)| value).collect();
        prop_assert_eq!(values, parts.iter().filter_map(|(.., value)| *value).collect::<Vec<_>>());
    }

    #[test]
    fn any_bytes_in_any_pieces_give_the_same(
        words in prop::collection::vec("<|/|>|filter-|start|end|name|progress|0.5| |\n|x|<filter-start>|</filter-start>|<filter-name>|</filter-name>|<filter-progress>|</filter-progress>", 0..40),
        size in 1_usize..9,
    ) {
        let text = words.concat();
        let pieces: Vec<&[u8]> = text.as_bytes().chunks(size).collect();
        prop_assert_eq!(read(&pieces), of(&text));
    }
}
