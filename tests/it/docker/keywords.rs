//! docker-py's own word on its keywords, asked of the docker-py that comes with `girder_worker`.

use std::process::Command;

/// What `containers.run` names, hands on, takes out of its keywords, and documents.
const ASK: &str = r#"
import inspect, json, re
from docker.models import containers

run = containers.ContainerCollection.run
named = [name for name in inspect.signature(run).parameters if name not in ("self", "kwargs")]
taken = containers.RUN_CREATE_KWARGS + containers.RUN_HOST_CONFIG_KWARGS
source = inspect.getsource(run) + inspect.getsource(containers._create_container_args)
popped = re.findall(r"\bkwargs\.(?:pop|get)\(['\"](\w+)", source)
documented = re.findall(r"^            (\w+) \(", run.__doc__, re.MULTILINE)
print(json.dumps(sorted({*named, *taken, *popped, *documented})))
"#;

#[test]
fn the_table_holds_just_the_keywords_of_docker_py_as_it_is() {
    let python = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/.cache/girder/bin/python");
    let asked = Command::new(&python).args(["-c", ASK]).output();
    let asked = asked.unwrap_or_else(|error| {
        panic!("{}: {error}; `make test` installs it (scripts/test-servers)", python.display())
    });
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    let theirs: Vec<String> = serde_json::from_slice(&asked.stdout).unwrap();
    let ours: Vec<&str> = longshore::docker::args::keywords().map(|(name, _)| name).collect();
    assert_eq!(ours, theirs);
}
