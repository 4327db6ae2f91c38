import ModditCore
import Testing

@testable import moddit_cli

struct ArgumentsTests {
    private func parse(_ words: String...) throws(UsageError) -> Arguments {
        try Arguments(words, for: Generate.command)
    }

    @Test func valuesAndFlags() throws {
        let arguments = try parse("--prompt", "a red circle", "--seed=-3", "--json", "--output=a=b.png")
        #expect(arguments.values == ["prompt": "a red circle", "seed": "-3", "output": "a=b.png"])
        #expect(arguments.flags == ["json"])
        #expect(try arguments.integer("seed", in: -9...9) == -3)
        #expect(try arguments.integer("steps", in: 1...9) == nil)
        #expect(try parse("--help").wantsHelp)
        #expect(try parse("--prompt", "--json").values == ["prompt": "--json"])
    }

    @Test func argumentsAfterDashes() throws {
        let arguments = try Arguments(["--json", "--", "--text"], for: Tokens.command)
        #expect(arguments.positional == ["--text"])
        #expect(try Arguments(["-"], for: Tokens.command).positional == ["-"])
    }

    @Test(arguments: [
        ["--unknown", "1"], ["--seed"], ["--seed", "1", "--seed", "2"], ["--json=1"], ["--json", "--json"], ["-x"],
        ["text"], ["--", "text"], ["--="],
    ])
    func wrongUsage(words: [String]) {
        #expect(throws: UsageError.self) { try Arguments(words, for: Generate.command) }
    }

    @Test func wrongValues() throws {
        for text in ["x", "1.5", "", "18446744073709551616", "-9223372036854775809"] {
            #expect(throws: UsageError.self) { try parse("--seed", text).integer("seed", in: Request.seeds) }
        }
        for text in ["18446744073709551615", "-9223372036854775808"] {
            #expect(try parse("--seed", text).integer("seed", in: Request.seeds) == Int128(text))
        }
        #expect(throws: UsageError.self) { try parse("--steps", "0").integer("steps", in: 1...9) }
        for text in ["x", "-1", "nan", "inf"] {
            #expect(throws: UsageError.self) { try parse("--guidance-scale", text).number("guidance-scale") }
        }
        let message = "option --sampler = 'heun', want one of dpmpp-2m, ddim, euler"
        #expect(throws: UsageError(message: message)) {
            let _: ModditCore.Sampler? = try parse("--sampler", "heun").choice("sampler")
        }
        #expect(throws: UsageError.self) { try parse().required("prompt") }
    }

    @Test func wishes() throws {
        let wish = { (words: [String]) in try Generate.Wish.read(Arguments(words, for: Generate.command)) }
        #expect(try wish(["--prompt", "x"]) == [.text(prompt: "x", negativePrompt: "")])
        #expect(
            try wish(["--prompt", "x", "--negative-prompt=y"]) == [.text(prompt: "x", negativePrompt: "y")])
        #expect(try wish(["--label", "crane", "--label=7"]) == [.label("crane"), .label("7")])
        for words in [[], ["--prompt", "x", "--label", "7"], ["--label", "7", "--negative-prompt", "x"]] {
            #expect(throws: UsageError.self) { try wish(words) }
        }
    }

    @Test func edits() throws {
        let read = { (words: [String]) in try EditOptions.read(Arguments(words, for: Generate.command)) }
        #expect(try read(["--prompt", "x"]) == nil)
        #expect(try read(["--image", "a.png"]) == EditOptions(image: "a.png", mask: nil, strength: nil))
        #expect(
            try read(["--image", "a.png", "--mask=b.png", "--strength", "0.5"])
                == EditOptions(image: "a.png", mask: .file("b.png"), strength: 0.5))
        #expect(try read(["--image", "a.png", "--mask", "alpha"])?.mask == .alpha)
        #expect(
            try read(["--image", "a.png", "--mask", "box:1,2,30,4"])?.mask == .box(x: 1, y: 2, width: 30, height: 4))
        #expect(try read(["--image", "a.png", "--mask", "./box:1"])?.mask == .file("./box:1"))
        #expect(throws: UsageError(message: "option --mask goes with --image")) { try read(["--mask", "alpha"]) }
        #expect(throws: UsageError(message: "option --strength goes with --image")) { try read(["--strength", "1"]) }
        for mask in ["box:", "box:1,2,3", "box:1,2,3,4,5", "box:a,2,3,4", "box:1,2,3.5,4"] {
            #expect(throws: UsageError.self) { try read(["--image", "a.png", "--mask", mask]) }
        }
        for strength in ["0", "1.5", "nan", "-1", "x"] {
            #expect(throws: UsageError.self) { try read(["--image", "a.png", "--strength", strength]) }
        }
    }

    @Test func outputsOfSeveralPictures() throws {
        #expect(try Generate.outputs(nil, count: 1) == ["picture.png"])
        #expect(try Generate.outputs(nil, count: 2) == ["picture-0.png", "picture-1.png"])
        #expect(try Generate.outputs("out/{index}x.PNG", count: 2) == ["out/0x.PNG", "out/1x.PNG"])
        #expect(throws: UsageError.self) { try Generate.outputs("x.png", count: 2) }
        #expect(throws: UsageError.self) { try Generate.outputs("x.jpg", count: 1) }
    }

    @Test func exitStatus() async {
        #expect(await CLI.run([]) == 2)
        #expect(await CLI.run(["--help"]) == 0)
        #expect(await CLI.run(["draw"]) == 2)
        #expect(await CLI.run(["generate", "--help"]) == 0)
        #expect(await CLI.run(["schedule"]) == 2)
        #expect(await CLI.run(["schedule", "--bundle", "/absent"]) == 1)
        #expect(await CLI.run(["generate", "--bundle", "/absent", "--prompt", "x"]) == 1)
        #expect(await CLI.run(["generate", "--bundle", "/absent", "--label", "x", "--label", "7"]) == 1)
        #expect(await CLI.run(["generate", "--bundle", "/absent", "--label", "x", "--prompt", "x"]) == 2)
        #expect(await CLI.run(["generate", "--bundle", "/absent"]) == 2)
        #expect(await CLI.run(["generate", "--bundle", "/absent", "--prompt", "x", "--height", "8"]) == 2)
        #expect(await CLI.run(["generate", "--bundle", "/absent", "--prompt", "x", "--mask", "alpha"]) == 2)
        #expect(await CLI.run(["placement", "--help"]) == 0)
        #expect(await CLI.run(["placement"]) == 2)
        #expect(await CLI.run(["placement", "--bundle", "/absent", "--compute-units", "npu"]) == 2)
        #expect(await CLI.run(["placement", "--bundle", "/absent", "--compute-units", "cpuOnly"]) == 1)
        #expect(await CLI.run(["tokens", "x"]) == 2)
        #expect(await CLI.run(["tokens", "x", "--tokenizer", "/absent"]) == 1)
    }
}
