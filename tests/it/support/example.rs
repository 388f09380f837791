//! The examples of `docs/protocol.md` as they stand there.

use std::time::Duration;

/// The block of code behind the mark with this name.
fn code(name: &str) -> String {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/protocol.md"))
        .expect("the contract is there");
    let (_, behind) =
        text.split_once(&format!("<!-- tested: {name} -->\n```")).expect("the example is there");
    let (_, code) = behind.split_once('\n').expect("it begins on a line of its own");
    code.split_once("```").expect("it ends").0.to_owned()
}

/// Runs the example of that name beside a server whose address it finds in `variable`; returns what it printed.
pub(crate) async fn run(variable: &str, url: &str, name: &str) -> String {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let file = folder.path().join(name);
    std::fs::write(&file, code(name)).expect("the folder can be written");
    let program: &[&str] = match name.rsplit('.').next() {
        Some("py") => &["python3"],
        Some("go") => &["go", "run"],
        Some("sh") => &["sh", "-e"],
        other => panic!("nothing runs examples in {other:?}"),
    };
    let mut command = tokio::process::Command::new(program[0]);
    command.args(&program[1..]).arg(&file).current_dir(folder.path());
    let output = command.env(variable, url).kill_on_drop(true).output();
    let output = tokio::time::timeout(Duration::from_secs(60), output).await.expect("it ends");
    let output = output.unwrap_or_else(|error| panic!("{}: {error}; run scripts/test-servers", program[0]));
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("examples print text")
}
