//! `--fields` and `netobs schema`, from the command line on: no root needed.

use clap::{Parser as _, error::ErrorKind};
use netobs::{
    cli::{Cli, Command},
    config,
    error::{Cause, Failure},
    render::{columns::Columns, csv, routes, schema},
};
use serde_json::Value;

/// The columns that `args` choose.
fn columns(args: &[&str]) -> Result<Columns, Failure> {
    let cli = Cli::try_parse_from([&["netobs"], args].concat()).expect("arguments");
    match &cli.command {
        Command::Watch(args) => config::Watch::new(&cli.global, args).map(|c| c.columns),
        Command::Routes(args) => config::Routes::new(&cli.global, args).map(|c| c.columns),
        Command::List(args) => config::List::new(&cli.global, args).map(|c| c.columns),
        _ => panic!("{args:?} has no columns"),
    }
}

#[track_caller]
fn refused(args: &[&str], words: &[&str]) {
    let failure = columns(args).expect_err("refused");
    assert_eq!(failure.cause, Cause::Usage);
    let told = failure.to_string();
    for word in words {
        assert!(told.contains(word), "no {word:?} in {told}");
    }
}

fn header(
    write: fn(&Columns, &mut dyn std::io::Write) -> std::io::Result<()>,
    columns: &Columns,
) -> String {
    let mut out = Vec::new();
    write(columns, &mut out).expect("a Vec takes everything");
    String::from_utf8(out).expect("UTF-8")
}

#[test]
fn columns_are_those_asked_for_in_that_order() -> Result<(), Failure> {
    let watch = columns(&["watch", "-ocsv", "--fields", "tx_bytes, namespace"])?;
    assert_eq!(header(csv::header, &watch), "tx_bytes,namespace\r\n");
    let routes = columns(&["routes", "-ocsv", "--fields=prefix", "--fields=hits_input"])?;
    assert_eq!(header(routes::csv_header, &routes), "prefix,hits_input\r\n");
    let list = columns(&["list", "-ocsv", "--fields=peer,master"])?;
    let mut out = Vec::new();
    csv::list(&[], &list, &mut out).expect("a Vec takes everything");
    assert_eq!(out, b"peer,master\r\n");
    Ok(())
}

#[test]
fn without_names_all_of_them() -> Result<(), Failure> {
    for args in [
        &["watch"][..],
        &["routes", "-ocsv"],
        &["list", "-ojson", "--fields="],
    ] {
        assert_eq!(columns(args)?, Columns::default(), "{args:?}");
    }
    Ok(())
}

#[test]
fn what_cannot_be_is_a_usage_error_that_says_what_to_do() {
    let unknown = ["\"rx_paket\"", "did you mean rx_packets?", "--fields help"];
    refused(&["watch", "-ocsv", "--fields=rx_paket"], &unknown);
    refused(&["list", "-ocsv", "--fields=veth"], &["\"veth\""]);
    refused(&["routes", "-ocsv", "--fields=rx_bytes"], &["\"rx_bytes\""]);
    refused(&["list", "-ocsv", "--fields=peer,,mac"], &["\"\""]);
    refused(&["list", "-ocsv", "--fields=peer,peer"], &["peer", "twice"]);
    for command in ["watch", "routes", "list"] {
        for output in ["table", "json"] {
            let args = [command, "-o", output, "--fields=namespace"];
            refused(&args, &["-o csv", "NETOBS_FIELDS"]);
        }
    }
}

#[test]
fn help_shows_every_name() {
    for (command, first, last) in [
        ("watch", "time", "failed_lookups_per_s"),
        ("list", "namespace", "addresses"),
        ("routes", "time", "count"),
    ] {
        let cli = Cli::try_parse_from(["netobs", command, "--fields=help"]).expect("arguments");
        let names = config::fields_to_tell(&cli.command).expect("names");
        assert_eq!(names.first().map(String::as_str), Some(first));
        assert_eq!(names.last().map(String::as_str), Some(last));
        // None of them means something else here, and each can be asked for.
        assert!(!names.iter().any(|name| name == "help"));
        let all = names.join(",");
        columns(&[command, "-ocsv", "--fields", &all]).expect("all names are known");
    }
    let cli = Cli::try_parse_from(["netobs", "list", "--fields=mac"]).expect("arguments");
    assert_eq!(config::fields_to_tell(&cli.command), None);
}

#[test]
fn a_schema_is_of_the_output_that_it_is_named_after() {
    for (name, text) in [
        ("sample", schema::SAMPLE),
        ("list", schema::LIST),
        ("routes", schema::ROUTES),
        ("doctor", schema::DOCTOR),
    ] {
        assert!(Cli::try_parse_from(["netobs", "schema", name]).is_ok());
        let schema: Value = serde_json::from_str(text).expect("JSON");
        assert_eq!(
            schema["properties"]["schema"]["const"],
            format!("netobs.{name}/1")
        );
    }
}

#[test]
fn schema_without_a_name_shows_the_names() {
    let error = Cli::try_parse_from(["netobs", "schema"]).expect_err("a name is missing");
    assert_eq!(
        error.kind(),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    );
    assert_eq!(error.exit_code(), 2);
    let names = ["sample", "list", "routes", "doctor"];
    let text = error.to_string();
    assert!(names.iter().all(|name| text.contains(name)), "{text}");
}
