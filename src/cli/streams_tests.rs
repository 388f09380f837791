use serde_json::{Value, json};

use super::*;

fn flags() -> StreamFlags {
    StreamFlags::default()
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

/// The arguments and connectors that come out.
fn read(flags: &StreamFlags, arguments: &[&str]) -> Result<(Vec<Value>, Vec<Value>), String> {
    let told = |error: CliError| error.to_string();
    let mut places = Places::declare(flags, Path::new("/home/me")).map_err(told)?;
    let arguments: Vec<Arg> =
        arguments.iter().map(|text| places.place(text)).collect::<Result<_, _>>().map_err(told)?;
    let values = |args: Vec<Arg>| args.iter().map(Arg::to_value).collect();
    Ok((values(arguments), values(places.connectors().map_err(told)?)))
}

#[test]
fn volumes_are_named_in_arguments() {
    let flags = StreamFlags { temp_volume: texts(&["a", "b:750=fast", "c=/x"]), ..flags() };
    let words =
        ["{volume}", "{volume/f}", "{volume:a}", "{volume:a/d/f}", "{volume:b}", "{volume:c}", "{other}"];
    let (arguments, connectors) = read(&flags, &words).unwrap();
    let b = json!({"$": "TemporaryVolume", "id": "b", "host_dir": "/home/me/fast", "mode": 0o750});
    assert_eq!(
        arguments,
        [
            json!({"$": "TemporaryVolume"}),
            json!({"$": "VolumePath", "filename": "f"}),
            json!({"$": "TemporaryVolume", "id": "a"}),
            json!({"$": "VolumePath", "filename": "d/f", "volume": {"$": "TemporaryVolume", "id": "a"}}),
            b,
            json!({"$": "TemporaryVolume", "id": "c", "host_dir": "/x"}),
            json!("{other}"),
        ]
    );
    assert!(connectors.is_empty());
}

#[test]
fn pipes_are_named_in_arguments_and_connected() {
    let flags = StreamFlags {
        temp_volume: texts(&["v"]),
        output_pipe: texts(&["v/o=pipe:in", "/run/p=stderr"]),
        progress_pipe: Some("progress".to_owned()),
        stdout: Some("http://h:1/x".to_owned()),
        stderr: Some("-".to_owned()),
        header: texts(&["A: b:c"]),
    };
    let (arguments, connectors) = read(&flags, &["{pipe:v/o}", "{pipe:in}", "{pipe:progress}"]).unwrap();
    let out = json!({"$": "NamedOutputPipe", "name": "o", "volume": {"$": "TemporaryVolume", "id": "v"}});
    let input = json!({"$": "NamedInputPipe", "name": "in"});
    assert_eq!(arguments, [out.clone(), input.clone(), json!({"$": "ProgressPipe", "name": "progress"})]);
    let at = json!({"$": "NamedOutputPipe", "name": "p", "container_path": "/run", "host_path": "/run"});
    let http = json!({"$": "ChunkedTransferEncodingStream", "url": "http://h:1/x", "headers": {"A": "b:c"}});
    assert_eq!(
        connectors,
        [
            json!({"$": "Connect", "input": out, "output": input}),
            json!({"$": "Connect", "input": at, "output": {"$": "HostStdErr"}}),
            json!({"$": "Connect", "input": {"$": "ContainerStdOut"}, "output": http}),
            json!({"$": "Connect", "input": {"$": "ContainerStdErr"}, "output": {"$": "HostStdOut"}}),
        ]
    );
    assert!(flags.uses_our_output());
}

#[test]
fn doubled_braces_stand_for_the_text_itself() {
    let (arguments, _) = read(&flags(), &["{{pipe:x}}", "{{volume}}", "{{x}}", "{\"a\": 1}"]).unwrap();
    assert_eq!(arguments, ["{pipe:x}", "{volume}", "{{x}}", "{\"a\": 1}"]);
}

#[test]
fn what_cannot_be_meant_is_refused_with_its_remedy() {
    let output = |text: &str| StreamFlags { output_pipe: texts(&[text]), ..flags() };
    let volume = |text: &str| StreamFlags { temp_volume: texts(&[text]), ..flags() };
    let two = StreamFlags {
        output_pipe: texts(&["a=http://one/x", "b=http://two/x"]),
        header: texts(&["T: secret"]),
        ..flags()
    };
    let told: Vec<String> = [
        (output("out"), &[][..]),
        (output("out=file.bin"), &[]),
        (output("../out=-"), &[]),
        (output("out=-"), &[]),
        (output("out=pipe:in"), &["{pipe:out}"]),
        (StreamFlags { output_pipe: texts(&["a=-", "a=stderr"]), ..flags() }, &[]),
        (volume("v:rw"), &[]),
        (volume("v"), &[]),
        (flags(), &["{pipe:out}"]),
        (flags(), &["{volume:v}"]),
        (flags(), &["{volume/../x}"]),
        (two, &[]),
        (StreamFlags { header: texts(&["T: secret"]), ..flags() }, &[]),
        (StreamFlags { header: texts(&["T secret"]), ..flags() }, &[]),
    ]
    .into_iter()
    .map(|(flags, arguments)| read(&flags, arguments).unwrap_err())
    .collect();
    let told = told.join("\n");
    assert!(!told.contains("secret\n"), "{told}");
    insta::assert_snapshot!(told);
}

#[test]
fn headers_are_read_from_a_file_so_that_no_command_line_shows_them() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("headers");
    std::fs::write(&file, "Girder-Token: abc\n\nX-A:1\n").unwrap();
    let read = headers(&[format!("@{}", file.display())]).unwrap();
    assert_eq!(read["Girder-Token"].expose(), "abc");
    assert_eq!(read["X-A"].expose(), "1");
    assert!(headers(&["@/nowhere/headers".to_owned()]).unwrap_err().to_string().contains("/nowhere/headers"));
}
