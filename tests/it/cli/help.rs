//! What is told of each command, and what is made of it: help, completions, manual pages.

use super::Harbour;

/// Every command, as the manual pages name them.
pub(super) fn commands(harbour: &Harbour) -> Vec<Vec<String>> {
    let folder = harbour.path().join("man");
    std::fs::create_dir(&folder).unwrap();
    harbour.run(&["man", folder.to_str().unwrap()]).good();
    let mut commands: Vec<Vec<String>> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|page| page.unwrap().file_name().into_string().unwrap())
        .map(|page| page.trim_end_matches(".1").split('-').skip(1).map(str::to_owned).collect())
        .collect();
    commands.sort();
    commands
}

#[test]
fn every_command_has_a_manual_page_and_helps_as_agreed() {
    let harbour = Harbour::new();
    let commands = commands(&harbour);
    assert!(commands.len() > 25, "{commands:?}");
    for command in &commands {
        let mut args: Vec<&str> = command.iter().map(String::as_str).collect();
        args.push("-h");
        let help = harbour.run(&args).good();
        let name = if command.is_empty() { "longshore".to_owned() } else { command.join("-") };
        // What every command takes stands in the first snapshot only.
        let own = if command.is_empty() { help } else { without_global(&help) };
        insta::assert_snapshot!(format!("help-{name}"), own);
    }
}

fn without_global(help: &str) -> String {
    let Some((own, global)) = help.split_once("Global options:\n") else { return help.to_owned() };
    let after = global.split_once("\n\n").map_or("", |(_, after)| after);
    format!("{own}{after}")
}

#[test]
fn completions_are_made_for_every_shell() {
    let harbour = Harbour::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = harbour.run(&["completions", shell]).good();
        assert!(script.contains("requeue") && script.contains("drain-timeout"), "{shell}");
    }
    assert!(harbour.run(&["completions", "csh"]).bad(2).contains("bash"));
}

#[test]
fn the_first_manual_page_is_printed_without_a_folder() {
    let harbour = Harbour::new();
    assert!(harbour.run(&["man"]).good().contains(".TH longshore 1"));
    assert!(harbour.run(&["man", "/nowhere/at/all"]).bad(2).contains("/nowhere/at/all"));
}

#[test]
fn schemas_are_json_and_say_what_they_are_of() {
    let harbour = Harbour::new();
    for (what, field) in [("task", "container_args"), ("event", "specversion"), ("result", "fence")] {
        let schema = harbour.run(&["schema", what]).json();
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
        let text = schema.to_string();
        assert!(text.contains(field) || what == "task", "{what}: {text}");
        assert!(!text.contains("envelope\":"), "records are shown without their envelope");
    }
}

#[test]
fn an_unknown_command_or_flag_is_wrong_usage() {
    let harbour = Harbour::new();
    assert!(harbour.run(&["sumbit"]).bad(2).contains("submit"));
    assert!(harbour.run(&["submit", "--voulme", "a:/b", "busybox"]).bad(2).contains("--volume"));
}
