import Foundation
import ModditCore
import ModditCoreML

/// `moddit-cli generate`: pictures of a prompt or of labels, with Core ML.
enum Generate {
    static let command = Command(
        name: "generate", summary: "Generate pictures with Core ML.", argument: nil,
        options: [
            .bundle, Option(name: "prompt", value: "TEXT", help: "What to draw, of a model that draws texts."),
            Option(name: "negative-prompt", value: "TEXT", help: "What to avoid.  [default: nothing]"),
            Option(
                name: "label", value: "NAME",
                help: "Class to draw, of a model that draws classes: a name or a number; may be there several times.",
                isRepeatable: true),
            Option(name: "seed", value: "N", help: "The same noise as in the Python runtimes.  [default: 0]"),
            PictureOptions.steps, PictureOptions.reuse,
            Option(
                name: "guidance-scale", value: "X",
                help: "1 or less turns guidance off.  [default: \(Request.textGuidanceScale), with --label "
                    + "\(Request.labelGuidanceScale)]"),
            PictureOptions.sampler,
        ] + EditOptions.all + PictureOptions.size + [
            .computeUnits,
            Option(name: "reduce-memory", value: nil, help: "Keep one part of the model in memory at a time."),
            Option(
                name: "output", value: "FILE",
                help: "PNG to write; {index} stands for 0, 1, ...  [default: picture.png, of several "
                    + "picture-{index}.png]"),
            Option(name: "overwrite", value: nil, help: "Replace files that exist."), .json,
        ])

    static func run(_ arguments: Arguments) async throws -> String {
        let wishes = try Wish.read(arguments)
        let request = try request(arguments)
        let wanted = try EditOptions.read(arguments)
        let options = CoreMLOptions(
            computeUnits: try arguments.choice("compute-units"),
            reducesMemory: arguments.flags.contains("reduce-memory"))
        let folder = URL(fileURLWithPath: try arguments.required(Option.bundle.name))
        let overwrites = arguments.flags.contains("overwrite")
        let outputs = try outputs(arguments.values["output"], count: wishes.count)
            .map { OutputFile(path: $0, overwrites: overwrites) }
        let pipeline = try Pipeline.open(folder: folder, options: options, report: note)
        let requests = try wishes.map { try $0.complete(request, pipeline) }
        let edit = try wanted?.open()
        for output in outputs { try output.check() }
        var found: [JSON] = []
        for (request, output) in zip(requests, outputs) {
            let start = ContinuousClock.now
            let picture = try await pipeline.generate(request, from: edit) {
                note($0, most: pipeline.manifest.spec.textTokens)
            }
            let seconds: Double = (ContinuousClock.now - start) / .seconds(1)
            try output.save(try picture.png())
            found.append(
                .object([
                    "path": .string(output.path), "seconds": .number(seconds),
                    "metadata": .string(picture.metadata.json),
                ]))
        }
        guard arguments.flags.contains("json") else { return outputs.map(\.path).joined(separator: "\n") }
        return JSON.object(["pictures": .array(found)]).text
    }

    /// What a user wants to see in one picture.
    enum Wish: Equatable {
        case text(prompt: String, negativePrompt: String)
        case label(String)

        /// Reads --prompt and --negative-prompt, or each --label.
        static func read(_ arguments: Arguments) throws(UsageError) -> [Wish] {
            let (prompt, negativePrompt) = (arguments.values["prompt"], arguments.values["negative-prompt"])
            switch (prompt, arguments.lists["label"]) {
            case (let prompt?, nil): return [.text(prompt: prompt, negativePrompt: negativePrompt ?? "")]
            case (nil, let labels?):
                guard negativePrompt == nil else {
                    throw UsageError(message: "option --negative-prompt goes with --prompt, not with --label")
                }
                return labels.map { .label($0) }
            default: throw UsageError(message: "give one of --prompt and --label")
            }
        }

        /// Puts the wish into a request, a class by its number.
        func complete(_ request: Request, _ pipeline: Pipeline) throws(ModditError) -> Request {
            var request = request
            switch self {
            case .text(let prompt, let negativePrompt):
                request.prompt = prompt
                request.negativePrompt = negativePrompt
            case .label(let text): request.label = try pipeline.label(text)
            }
            return request
        }
    }

    /// Names the file of each picture.
    static func outputs(_ pattern: String?, count: Int) throws(UsageError) -> [String] {
        let pattern = pattern ?? (count > 1 ? "picture-{index}.png" : "picture.png")
        guard pattern.lowercased().hasSuffix(".png") else {
            throw UsageError(message: "option --output = '\(pattern)', want a name that ends in .png")
        }
        guard count == 1 || pattern.contains("{index}") else {
            throw UsageError(
                message: "option --output = '\(pattern)' names one file for \(count) pictures, want {index} in it")
        }
        return (0..<count).map { pattern.replacingOccurrences(of: "{index}", with: "\($0)") }
    }

    private static func request(_ arguments: Arguments) throws(UsageError) -> Request {
        var request = Request(prompt: "")
        request.seed = try arguments.integer("seed", in: Request.seeds) ?? 0
        request.steps = try arguments.integer("steps", in: 1...Bounds.timesteps) ?? request.steps
        request.guidanceScale = try arguments.number("guidance-scale")
        request.size = try CLI.size(arguments)
        request.sampler = try arguments.choice("sampler")
        request.reuse = try arguments.integer("reuse", in: 1...Bounds.timesteps) ?? request.reuse
        return request
    }

    private static func note(_ event: CoreMLEvent) {
        switch event {
        case .warning(let text): CLI.note("warning: \(text)")
        case .loaded(let load):
            let compiled = String(format: "compiled in %.1f s", load.compileSeconds)
            let origin = load.origin == .cache ? "from the cache" : compiled
            CLI.note(
                "\(load.package.printable), function \(load.function): \(origin), "
                    + String(format: "loaded in %.1f s", load.loadSeconds))
        }
    }

    private static func note(_ stage: Stage, most: Int) {
        switch stage {
        case .encoded(let tokens) where tokens.contains { $0 >= most }:
            CLI.note("warning: a text fills all \(most) tokens; what is beyond them is ignored")
        case .step(let step):
            CLI.note("step \(step.index + 1)/\(step.total), timestep \(step.timestep), \(step.function ?? "reused")")
        default: break
        }
    }
}
